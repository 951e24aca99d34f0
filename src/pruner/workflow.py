"""Track → recommend → prune → verify → report → store, in one call."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from pruner import log
from pruner.backup import Backup, by_reference
from pruner.companions import Companions
from pruner.compression import compress
from pruner.config import PruningConfig
from pruner.current_map import current_map
from pruner.engine import PruningEngine
from pruner.metrics import count_bytes, count_parameters
from pruner.outputs import start_run
from pruner.plan import PruningPlan
from pruner.planned import prune_by_plan
from pruner.results import (
    Outcome,
    PruningResults,
    TrackingResults,
    VerificationResults,
    WorkflowResults,
)
from pruner.scope import Scope
from pruner.verification import FailedChecksError
from pruner.workflow_run import Evaluate, Run
from tracker.admission import admitted_for_change
from tracker.batches import Batch, evaluating, iter_batches
from tracker.engine import NeuronEngine
from tracker.errors import DataError
from tracker.history import EpochRecord
from tracker.neuron_map import NeuronMap
from tracker.progress import step as long_step
from tracker.recommendations import Recommendations, load_recommendations

COVARIANCE_BYTES = 32 * 2**20
"""Redundant neurons are looked for where the covariances of all layers fit into so much; it costs little then."""

_UNVERIFIED: VerificationResults = {
    "checks": [],
    "summary": {"passed": 0, "total": 0, "overall_success": False},
    "not_checked": [],
    "measured": None,
}


class IntegratedTrackingPruningWorkflow:
    """Tracks a model on data, recommends, prunes, verifies, and stores everything with a report.

    Run again on the same model, `strategy.target_sparsity` still is a share of the model as it was at first.

    Args:
        config: a configuration; by default `create_default_config()`.
        output_dir: where the six folders of outputs are made (see `pruner.outputs`).
        tracker: an engine that watched the model in training; the epochs it logged then are in the report.
    """

    def __init__(
        self,
        config: PruningConfig | None = None,
        output_dir: str | Path = "outputs",
        *,
        tracker: NeuronEngine | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.pruner = PruningEngine(config=config, output_dir=self.output_dir)
        self.tracker = tracker

    def run_complete_workflow(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        model_name: str = "model",
        auto_prune: bool = True,
        *,
        evaluate: Evaluate | None = None,
        recommendations: Recommendations | Mapping[str, Any] | str | Path | None = None,
        base: str | None = None,
        optimizer: Companions | None = None,
        target: Mapping[str, float] | None = None,
        effort: str = "default",
        plan: PruningPlan | None = None,
    ) -> WorkflowResults:
        """Make `model` smaller, in place, and prove it right; the model stays as it is unless all of it succeeds.

        Args:
            model: the model. Its mode, gradients and the random numbers are afterwards as before.
            data_loader: batches that can be gone through several times. With class indices as targets, accuracy is
                measured on them.
            model_name: what the run's files are called.
            auto_prune: False stops after a dry run: the report then says what would be removed.
            evaluate: measures your own quality of the model it is given, in evaluation mode and without gradients,
                before and after. What it calls "accuracy", a share from 0 to 1, takes the place of the accuracy on
                `data_loader`.
            recommendations: recommendations made earlier, or their file; the model is then not tracked again.
            base: how to build the original model ("module:callable", "timm:NAME", …), stored with the pruned one.
            optimizer: its state is cut along with the model, and restored with it.
            target, effort: the share of the model to keep, such as {"params": 0.5}, and how hard to try, as in
                `compress`, which then decides instead of the recommendations.
            plan: instead, the very neurons that go; with `repair` in the configuration the others take over.

        Returns:
            See `pruner.results.WorkflowResults`.

        Raises:
            StorageError: an output cannot be written; known before anything is done to the model, where possible.
            DataError: an empty loader, one that can be gone through only once, NaN or Inf in data, weights or metrics.
            RecommendationError, PlanError, DiscoveryError, ConfigError: as `PruningEngine` raises them.
            FailedChecksError: the pruned model failed a check; a report is written, and the error says where.

        After any error, `KeyboardInterrupt` included, the model is as it was, bit for bit, and of the run's files only
        those of a failed check are left.
        """
        bare = admitted_for_change(model)
        batch = _first_batch(bare, data_loader)
        log.configure(self.pruner.config.logging, self.output_dir)
        outputs = start_run(self.output_dir, model_name, model_bytes=count_bytes(bare))
        backup = Backup(bare, optimizer, keep=by_reference)
        try:
            with evaluating(bare):
                run = Run(bare, data_loader, batch, model_name, outputs, self.pruner.config, evaluate, base, optimizer)
                return self._run(run, recommendations, auto_prune, target, effort, plan)
        except FailedChecksError:  # the engine has restored the model, and the report says what failed
            raise
        except BaseException:
            backup.restore(bare)
            outputs.discard()
            raise

    def _run(
        self,
        run: Run,
        given: Recommendations | Mapping[str, Any] | str | Path | None,
        auto_prune: bool,
        target: Mapping[str, float] | None,
        effort: str,
        plan: PruningPlan | None,
    ) -> WorkflowResults:
        with run.step("track"), long_step("Tracking"):
            neurons = current_map(run.model, run.data_loader)
            if given is None:
                advice, tracking = self._tracked(run, neurons)
            else:
                advice = load_recommendations(given)
                tracking = _tracking(neurons, advice, batches=0, history=())
        with run.step("store"), long_step("Storing the original"):
            run.write("recommendations", run.outputs.recommendations, advice.model_dump(mode="json"))
            run.save(run.model, run.outputs.original_model, "original_model")
        with run.step("measure"), long_step("Measuring"):
            quality = run.quality_of(run.model)
        try:
            with run.step("prune and verify"):
                how: dict[str, Any] = {
                    "dry_run": not auto_prune,
                    "optimizer": run.optimizer,
                    "store": lambda pruned: run.save(pruned, run.outputs.pruned_model, "pruned_model"),
                }
                if plan is not None:
                    made = prune_by_plan(
                        run.model, neurons, plan, self.pruner.config, data_loader=run.data_loader, **how
                    )
                elif target is None:
                    made = self.pruner.prune_by_recommendations(run.model, advice, data_loader=run.data_loader, **how)
                else:
                    made = compress(
                        run.model, run.data_loader, target=target, effort=effort, config=self.pruner.config, **how
                    )
                pruning = cast(PruningResults, made)
        except FailedChecksError as failed:
            pruning = _put_back(run, neurons, failed)
            verification = cast(VerificationResults, failed.report.to_json())
            shutil.rmtree(run.written.pop("pruned_model"))
            report = run.finish(advice, tracking, pruning, verification, quality, "restored")["report"]
            failed.hint = f"{failed.hint} See {report['html']}."
            raise
        verification = cast(VerificationResults, pruning["verification"]) if pruning["verification"] else _UNVERIFIED
        return run.finish(advice, tracking, pruning, verification, quality, _outcome(pruning))

    def _tracked(self, run: Run, neurons: NeuronMap) -> tuple[Recommendations, TrackingResults]:
        inexact = any(not neurons[name].exact for name in Scope.of(neurons, neurons, run.config.strategy).layers)
        covariances = sum(8 * (group.size + 1) ** 2 for group in neurons if group.exact or inexact)
        engine = self.tracker or NeuronEngine(
            self.output_dir, covariance=covariances <= COVARIANCE_BYTES, include_inexact=inexact
        )
        tracker = engine.track_model(run.model)
        stats = tracker.observe(run.data_loader, neurons)
        threshold = run.config.thresholds.firing_frequency_threshold
        advice = tracker.recommend(firing_frequency_threshold=threshold)
        run.stats = stats
        return advice, _tracking(neurons, advice, stats.batches, tracker.history.epochs)


def create_simple_workflow(
    model: nn.Module,
    data_loader: Iterable[Any],
    model_name: str = "model",
    config: PruningConfig | None = None,
    *,
    output_dir: str | Path = "outputs",
    evaluate: Evaluate | None = None,
) -> WorkflowResults:
    """The whole workflow in one call; see `IntegratedTrackingPruningWorkflow.run_complete_workflow`."""
    workflow = IntegratedTrackingPruningWorkflow(config, output_dir)
    return workflow.run_complete_workflow(model, data_loader, model_name, evaluate=evaluate)


def _first_batch(model: nn.Module, data_loader: Iterable[Any]) -> Batch:
    """The first batch, read before anything is done; raises `DataError` for data that cannot be used."""
    if isinstance(data_loader, Iterator):
        raise DataError(
            f"The data loader is a {type(data_loader).__name__}, which can be gone through only once.",
            hint="Give a DataLoader or a list of batches: the data are needed to track and again to verify.",
        )
    with evaluating(model):
        return next(iter_batches(data_loader, model))


def _tracking(
    neurons: NeuronMap, advice: Recommendations, batches: int, history: Iterable[EpochRecord]
) -> TrackingResults:
    """What is known of every layer. Recommendations made by hand carry no activity."""
    firing = {
        name: list(layer.activity.firing_frequency)
        for name, layer in advice.layers.items()
        if layer.activity is not None
    }
    return {
        "neurons": neurons.neurons,
        "batches": batches,
        "layers": {
            group.name: {
                "size": group.size,
                "kind": group.kind,
                "exact": group.exact,
                "note": group.note,
                "firing_frequency": firing.get(group.name),
            }
            for group in neurons
        },
        "frozen": [{"name": entry.name, "size": entry.size, "reason": entry.reason} for entry in neurons.frozen],
        "operators_without_rule": dict(neurons.operators_without_rule),
        "history": [{"epoch": e.epoch, "loss": e.loss, "accuracy": e.accuracy} for e in history],
    }


def _put_back(run: Run, neurons: NeuronMap, failed: FailedChecksError) -> PruningResults:
    """The pruning results of a run in which a check failed: nothing was removed."""
    parameters = count_parameters(run.model)
    return {
        "neurons_pruned": 0,
        "neurons_before": neurons.neurons,
        "neurons_after": neurons.neurons,
        "reduction": 0.0,
        "layers_affected": 0,
        "layers": {},
        "parameters_before": parameters,
        "parameters_after": parameters,
        "dry_run": False,
        "strategy": run.config.strategy.default_strategy,
        "plan": failed.plan.to_json(),
        "candidates": [],
        "verification": None,
        "warnings": [str(failed)],
    }


def _outcome(pruning: PruningResults) -> Outcome:
    if not pruning["neurons_pruned"]:
        return "nothing to remove"
    return "dry run" if pruning["dry_run"] else "pruned"
