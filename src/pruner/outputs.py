"""Where a run's files go: six folders, and names that no other run has.

```
outputs/
├── logs/              <run>_recommendations.json  <run>_plan.json  <run>_pruning.json
├── reports/           <run>_report.html           <run>_report.json
├── models/            <run>_original/             the model as it was, safetensors + JSON
├── pruned_models/     <run>_pruned/               the smaller model, safetensors + JSON
├── verification/      <run>_verification.json
└── visualizations/    <run>_<name>.svg|png
```

A run is called `<model name>_<YYYYmmdd-HHMMSS>`, and `-2`, `-3` … follow where that name is taken.
"""

import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tracker.errors import StorageError
from tracker.files import write_bytes

FOLDERS = ("logs", "reports", "models", "pruned_models", "verification", "visualizations")
SPARE_BYTES = 16 * 2**20
"""Room for a run's JSON, pictures and report, on top of what the models need."""

_RUN = re.compile(r"(?P<model>.+)_(?P<stamp>\d{8}-\d{6})(?:-(?P<number>\d+))?")
_REPORT = "_report.json"


@dataclass(frozen=True)
class RunOutputs:
    """The paths of one run's files. `root` is the directory that holds the six folders, `name` the name of the run."""

    root: Path
    name: str

    @property
    def recommendations(self) -> Path:
        """What the tracker recommends."""
        return self.root / "logs" / f"{self.name}_recommendations.json"

    @property
    def plan(self) -> Path:
        """The neurons that were removed, as a `PruningPlan` that can be applied again."""
        return self.root / "logs" / f"{self.name}_plan.json"

    @property
    def pruning(self) -> Path:
        """The pruning results and the metrics before and after."""
        return self.root / "logs" / f"{self.name}_pruning.json"

    @property
    def report_html(self) -> Path:
        """The report for a person."""
        return self.root / "reports" / f"{self.name}_report.html"

    @property
    def report_json(self) -> Path:
        """The same report for a program."""
        return self.root / "reports" / f"{self.name}{_REPORT}"

    @property
    def original_model(self) -> Path:
        """Directory of the model as it was before."""
        return self.root / "models" / f"{self.name}_original"

    @property
    def pruned_model(self) -> Path:
        """Directory of the smaller model."""
        return self.root / "pruned_models" / f"{self.name}_pruned"

    @property
    def verification(self) -> Path:
        """The checks, each with what it measured."""
        return self.root / "verification" / f"{self.name}_verification.json"

    def visualization(self, name: str) -> Path:
        """A picture called `name`, which ends with its suffix: "layers.svg"."""
        return self.root / "visualizations" / f"{self.name}_{name}"

    def discard(self) -> None:
        """Remove every file of this run, as far as that is possible."""
        for folder in FOLDERS:
            for path in (self.root / folder).glob(f"{self.name}_*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def start_run(
    output_dir: str | os.PathLike[str], model_name: str, *, model_bytes: int = 0, now: datetime | None = None
) -> RunOutputs:
    """Make the six folders, prove that they can be written to, and take a name that no other run has.

    Called before anything is done to the model, so that a disk that is full or read-only is found out first. The name
    is taken by making the run's directory under `models/`, which only one process can do. `model_bytes` is the size of
    the model that will be stored twice, before and after. `now` is the time that the run is named after.

    Raises:
        StorageError: a folder cannot be made or written to, or the disk lacks the room.
    """
    root = Path(output_dir)
    for folder in FOLDERS:
        probe = root / folder / f".probe-{os.getpid()}"
        write_bytes(probe, b"NeuronScope checks that it can write here.\n")
        probe.unlink(missing_ok=True)
    _check_room(root, 2 * model_bytes + SPARE_BYTES)
    stem = f"{file_name_of(model_name)}_{now or datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        run = RunOutputs(root, stem if number == 1 else f"{stem}-{number}")
        try:
            run.original_model.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StorageError(
                f"Cannot make {run.original_model}: {error.strerror}.", hint="Choose another output directory."
            ) from error
        else:
            return run


def list_runs(output_dir: str | os.PathLike[str] = "outputs") -> list[RunOutputs]:
    """The runs that have a report under `output_dir`, newest first; none where the directory does not exist."""
    root = Path(output_dir)
    found: list[tuple[tuple[str, int, str], RunOutputs]] = []
    for path in (root / "reports").glob(f"*{_REPORT}"):
        name = path.name.removesuffix(_REPORT)
        match = _RUN.fullmatch(name)
        if match:
            age = (match["stamp"], int(match["number"] or 1), match["model"])
            found.append((age, RunOutputs(root, name)))
    return [run for _, run in sorted(found, key=lambda entry: entry[0], reverse=True)]


def file_name_of(model_name: str) -> str:
    """A model's name as a part of a file name: letters, digits, dots, dashes and underscores, at most 80 of them.

    >>> file_name_of("sentence-transformers/all-MiniLM-L6-v2")
    'sentence-transformers-all-MiniLM-L6-v2'
    >>> file_name_of("../../etc/passwd")
    'etc-passwd'
    """
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name).strip("-._")
    cleaned = re.sub(r"[-.]*-[-.]*", "-", cleaned)
    return cleaned[:80].rstrip("-._") or "model"


def _check_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"The disk of {root} has {free / 2**20:,.0f} MiB free; this run needs about {needed / 2**20:,.0f} MiB.",
            hint="Free some space or choose another output directory.",
        )
