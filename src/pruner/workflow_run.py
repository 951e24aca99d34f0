"""One run of the workflow on its way: what it is about, what it measures and writes, how long its steps take."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from pruner import log
from pruner.checkpoint import load_pruned, save_pruned
from pruner.companions import Companions
from pruner.config import PruningConfig
from pruner.environment import environment_of
from pruner.metrics import compute_metrics
from pruner.outputs import RunOutputs
from pruner.report_building import build_report
from pruner.report_charts import layers_picture
from pruner.report_files import write_report
from pruner.results import (
    Measured,
    Metrics,
    Outcome,
    PruningResults,
    TrackingResults,
    VerificationResults,
    WorkflowResults,
)
from pruner.skeleton import skeleton
from tracker.activity import ActivityStats
from tracker.batches import Batch, accuracy
from tracker.errors import DataError
from tracker.files import write_json, write_text
from tracker.plots import plot_heatmap, plot_histograms
from tracker.progress import step as long_step
from tracker.recommendations import Recommendations

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
"""A quality of your own, of which more is better: a number, or numbers by name."""


@dataclass
class Run:
    """One run on its way: what it is about, what it wrote, and how long its steps took."""

    model: nn.Module
    data_loader: Iterable[Any]
    batch: Batch
    model_name: str
    outputs: RunOutputs
    config: PruningConfig
    evaluate: Evaluate | None
    base: str | None
    optimizer: Companions | None
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())
    seconds: dict[str, float] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    stats: ActivityStats | None = None
    dense: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.dense = skeleton(self.model)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to the step called `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def write(self, what: str, path: Path, data: Any) -> None:
        """Write JSON, and remember that it was written."""
        write_json(path, data)
        self.written[what] = str(path)

    def save(self, model: nn.Module, directory: Path, what: str) -> Path:
        """Store a model, and remember where."""
        save_pruned(model, directory, base=self.base, provenance={"run": self.outputs.name})
        self.written[what] = str(directory)
        return directory

    def quality_of(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, where the data have targets for it, and what the caller measures, by name."""
        found: dict[str, float] = {}
        if (share := accuracy(model, self.data_loader)) is not None:
            found["accuracy"] = share
        if self.evaluate is not None:
            own = self.evaluate(model)
            found |= own if isinstance(own, Mapping) else {"quality": own}
        for name, value in found.items():
            if not math.isfinite(value):
                raise DataError(f"The metric '{name}' is {value}.", hint="Look at the data and at `evaluate`.")
        return {name: float(value) for name, value in found.items()}

    def finish(
        self,
        advice: Recommendations,
        tracking: TrackingResults,
        pruning: PruningResults,
        verification: VerificationResults,
        quality: Mapping[str, float],
        outcome: Outcome,
    ) -> WorkflowResults:
        """Measure what came of it, and write everything down."""
        with self.step("measure"), long_step("Measuring"):
            metrics = self._metrics(pruning, quality, changed=outcome == "pruned")
        self.write("plan", self.outputs.plan, pruning["plan"])
        self.write("pruning", self.outputs.pruning, {"pruning_results": pruning, "metrics": metrics})
        self.write("verification", self.outputs.verification, verification)
        results: WorkflowResults = {
            "run": {
                "name": self.outputs.name,
                "model_name": self.model_name,
                "model": type(self.model).__name__,
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": self.seconds,
                "base": self.base,
                "outcome": outcome,
            },
            "tracking_results": tracking,
            "recommendations": advice.model_dump(mode="json"),
            "pruning_results": pruning,
            "verification_results": verification,
            "metrics": metrics,
            "environment": environment_of(self.model, self.batch, self.config.model_dump(mode="json")),
            "report": {},
            "outputs": self.written,
        }
        with self.step("draw"), long_step("Drawing"):
            self._draw(tracking, pruning)
        results["report"] = write_report(build_report(results), self.outputs)
        log.logger.info("Report: %s", results["report"]["html"])
        return results

    def _metrics(self, pruning: PruningResults, before: Mapping[str, float], changed: bool) -> Metrics:
        """Both models side by side. The original is read back from the file: then that is known to work, too."""
        if not changed:
            measured = compute_metrics(self.model, self.model)
            before_only = _measured(measured, "original", pruning["neurons_before"], before)
            return {"before": before_only, "after": None, "custom": {}}
        device = next(self.model.parameters()).device
        original = load_pruned(self.outputs.original_model, self.dense).to(device)
        measured = compute_metrics(self.model, original)
        return {
            "before": _measured(measured, "original", pruning["neurons_before"], before),
            "after": _measured(measured, "pruned", pruning["neurons_after"], self.quality_of(self.model)),
            "custom": measured["custom"],
        }

    def _draw(self, tracking: TrackingResults, pruning: PruningResults) -> None:
        """The layers, and what the neurons do where matplotlib is there to draw it."""
        sizes = {name: layer["size"] for name, layer in tracking["layers"].items()}
        left = sizes | {name: layer["after"] for name, layer in pruning["layers"].items()}
        rows = [(name, left[name], size) for name, size in sizes.items()]
        pictures: dict[str, Callable[[Path], object]] = {
            "layers.svg": lambda path: write_text(path, layers_picture(rows, self.model_name))
        }
        if (stats := self.stats) and find_spec("matplotlib"):
            pictures["activity_heatmap.png"] = lambda path: plot_heatmap(stats, path)
            pictures["activity_histograms.png"] = lambda path: plot_histograms(stats, path)
        for name, write in pictures.items():
            path = self.outputs.visualization(name)
            write(path)
            self.written[name.partition(".")[0]] = str(path)


def _measured(measured: Mapping[str, Any], which: str, neurons: int, quality: Mapping[str, float]) -> Measured:
    """One side of `compute_metrics`."""
    return {
        "neurons": neurons,
        "parameters": measured["model_size"][f"{which}_parameters"],
        "bytes": measured["model_size"][f"{which}_bytes"],
        "flops": measured["flops"][which] or None,
        "latency_ms": measured["latency_ms"][which],
        "accuracy": quality.get("accuracy"),
        "quality": {name: value for name, value in quality.items() if name != "accuracy"},
    }
