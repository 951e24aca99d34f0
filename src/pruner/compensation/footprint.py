"""The memory that a repair takes beside the model: worked out before it starts, and refused where it is not there."""

from __future__ import annotations

from logging import DEBUG, INFO
from pathlib import Path
from typing import NamedTuple

import torch

from pruner.compensation.bench import Bench
from pruner.compensation.calibration import samples_of
from pruner.compensation.closed_form import units
from pruner.compensation.consumers import Consumer
from pruner.log import logger
from tracker.errors import ConfigError

_COPIES = 3  # one that is changed, and the values it had after the best step and the latest
_SOLVED = 12  # square matrices in double precision while neurons are chosen, workspace included: measured
_HELD = 4  # of those, for every further consumer that is looked at with it
_MUCH = 10**9
_CGROUP = Path("/sys/fs/cgroup")


class Footprint(NamedTuple):
    """Bytes beside the model: of its copies, of the moments of the widest layer, and of what blocks hand on."""

    copies: int
    moments: int
    remembered: int

    @property
    def total(self) -> int:
        """All of them: what blocks hand on grows with the samples, the others do not."""
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{_read(self.total)} ({_read(self.copies)} for copies of the weights, {_read(self.moments)} for the "
            f"moments of the widest layer, {_read(self.remembered)} for what blocks hand on)"
        )


def footprint(bench: Bench, copies: int, *, training: bool) -> Footprint:
    """What solving for a bench's consumers takes with so many `copies` of each sample, and training block by block."""
    model, stages, consumers = bench.model, bench.stages(), bench.consumers.found
    named = dict(model.named_parameters(remove_duplicate=False))
    weights = sum({id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}.values())
    moments = 0
    for _, unit in units(consumers, stages):
        sizes = [(consumer.size, _outputs(consumer, named[consumer.weight])) for consumer in unit]
        wide = max(size for size, _ in sizes)
        others = sum(n**2 for n, _ in sizes) - wide**2
        moments = max(moments, sum(2 * 4 * n * (n + m) for n, m in sizes) + 8 * (_SOLVED * wide**2 + _HELD * others))
    samples = sum(map(samples_of, bench.raw)) * (1 + copies)
    each = bench.course.remembered / max(1, samples_of(stages.batches[0]))
    kept = 4 if training else 2  # of the dense model and the pruned one; in training also inputs and targets
    return Footprint(_COPIES * weights, moments, int(each * samples * kept))


def announce(needed: Footprint, device: torch.device) -> None:
    """Log what is needed, loudly where it is much; raises `ConfigError` where that is more than is free."""
    free = free_bytes(device)
    if free is not None and needed.total > free:
        raise ConfigError(
            f"The repair needs {needed} beside the model; {_read(free)} are free on {device}.",
            hint="Give fewer samples or shorter ones, name fewer layers, or remove without a repair "
            "(PruningEngine with repair.enabled = false).",
        )
    logger.log(INFO if needed.total >= _MUCH else DEBUG, "The repair takes about %s beside the model.", needed)


def free_bytes(device: torch.device) -> int | None:
    """How much memory is free on a device, within the limit of the container; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [int(line.split()[1]) * 1024 for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable")]
    limit, used = (_lines(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit():
        idle = [int(line.split()[1]) for line in _lines(_CGROUP / "memory.stat") if line.startswith("inactive_file ")]
        found.append(max(0, int(limit[0]) - int(used[0]) + sum(idle)))  # cached files make room when it is needed
    return min(found, default=None)


def _outputs(consumer: Consumer, weight: torch.Tensor) -> int:
    return consumer.size if consumer.form == "mixing" else consumer.matrix(weight).shape[0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _read(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
