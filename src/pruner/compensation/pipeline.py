"""From what is to go to the neurons that go and the new values of the weights that stay, better step by step.

    closed form       every consumer solved for, block by block (`closed_form`)
    → batch norms     their running statistics estimated anew (`batch_norms`)
    → blocks          every block trained to write what the dense one wrote (`reconstruction`)
    → answers         all blocks together, for the dense model's answers

Each step starts from the one before it, and is kept only where the answers on samples held out come nearer to the dense
model's. Everything happens on a copy; the model itself is only read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pruner.apply import prune_
from pruner.compensation.batch_norms import reestimate, tracking
from pruner.compensation.bench import Bench
from pruner.compensation.calibration import calibration, samples_of
from pruner.compensation.closed_form import SolvedLayer, Wanted, prune_in_order, silence
from pruner.compensation.footprint import Footprint, announce, footprint
from pruner.compensation.reconstruction import Trained, reconstruct_answers, reconstruct_blocks
from pruner.plan import PruningPlan
from pruner.repair import repaired_in, tensors_of
from tracker.batches import evaluating
from tracker.errors import ConfigError

Effort = Literal["low", "default", "high"]


class Work(NamedTuple):
    """What an effort buys: samples made of each one, steps of training for a block, and steps for all together."""

    copies: int
    block_steps: int
    answer_steps: int


EFFORTS: Mapping[str, Work] = {"low": Work(1, 0, 0), "default": Work(4, 320, 120), "high": Work(8, 1200, 600)}


@dataclass(frozen=True)
class Repaired:
    """What goes, and what the weights that stay become.

    `gone` are the neurons, `tensors` the new values in the dense model's shapes. `layers` say how each consumer was
    solved for, `blocks` what training them brought, and `left_out` which weights could not be solved for, and why.
    `distances` are those of the answers to the dense model's on samples held out, after each step tried (see
    `distance`), and `kept` is the step that was best. `samples` is how many there were, joined ones included, and
    `held_out` how many of them only judged.
    """

    gone: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    layers: tuple[SolvedLayer, ...]
    blocks: tuple[Trained, ...]
    left_out: Mapping[str, str]
    distances: Mapping[str, float]
    kept: str
    samples: int
    held_out: int

    def to_json(self) -> dict[str, Any]:
        """All of it but the tensors, as JSON-ready data."""
        return {
            "kept": self.kept,
            "distances": dict(self.distances),
            "samples": self.samples,
            "held_out": self.held_out,
            "layers": [
                {
                    "consumer": layer.consumer,
                    "of": list(layer.layers),
                    "columns": layer.columns,
                    "kept": layer.kept,
                    "method": layer.method,
                    "ridge": layer.ridge,
                    "errors": dict(layer.errors),
                    "rows": layer.rows,
                }
                for layer in self.layers
            ],
            "blocks": [
                {"block": block.block, "before": block.before, "after": block.after, "steps": block.steps}
                for block in self.blocks
            ],
            "left_out": dict(self.left_out),
            "repaired": sorted(self.tensors),
        }


def effort_of(name: str) -> Work:
    """What an effort buys; raises `ConfigError` for an unknown one."""
    if name not in EFFORTS:
        raise ConfigError(f"effort = {name!r} is unknown.", hint=f"Use one of {', '.join(EFFORTS)}.")
    return EFFORTS[name]


def announced(bench: Bench, effort: str) -> Footprint:
    """The memory that an effort takes, logged; raises `ConfigError` where that is more than is free."""
    work = effort_of(effort)
    needed = footprint(bench, work.copies, training=work.block_steps > 0)
    announce(needed, bench.device)
    return needed


def repaired(bench: Bench, wanted: Wanted, *, effort: str = "default", seed: int = 0) -> Repaired:
    """Choose what is wanted by number, and find the values that the weights which stay should have.

    Raises `ConfigError` for an unknown effort, and `DataError` where what layers read is not finite.
    """
    work = effort_of(effort)
    bench = bench.with_copies(work.copies, seed)
    pruned = bench.copy()
    gone, layers = prune_in_order(bench.stages(), bench.stages(pruned), bench.neurons, bench.consumers, wanted)
    steps = _Steps(bench, gone)
    steps.note("closed form", pruned, steps.changed(pruned))
    _norms(bench, pruned, steps)
    blocks: list[Trained] = []
    if work.block_steps:
        prune_(pruned, PruningPlan(gone), bench.neurons, proof=False)
        with evaluating(pruned):
            blocks = _train(bench, pruned, work, seed, steps)
    return Repaired(
        gone=gone,
        tensors=steps.tensors,
        layers=tuple(layers),
        blocks=tuple(blocks),
        left_out=bench.consumers.left_out,
        distances=steps.distances,
        kept=steps.best,
        samples=sum(map(samples_of, bench.data.batches)),
        held_out=sum(samples_of(bench.data.batches[number]) for number in bench.data.held),
    )


class _Steps:
    """What was tried: the distance of the answers after each step, and the values the weights had after the best."""

    def __init__(self, bench: Bench, gone: Mapping[str, Tensor]) -> None:
        self._bench, self._gone = bench, gone
        silent = bench.copy()
        for name, chosen in gone.items():
            silence(silent, bench.neurons, name, chosen)
        self.distances = {"removed": bench.near(silent)}
        self.best = "removed"
        self.tensors: Mapping[str, Tensor] = dict(bench.rearranged)
        self.names: set[str] = set(bench.rearranged)  # of the tensors that any step has changed
        self._lengths = {length.length: length.direction for length in bench.neurons.lengths}
        self._zeroed: dict[str, dict[int, Tensor]] = {}
        for name, chosen in gone.items():
            slices = bench.neurons[name].slices(chosen)
            for site in bench.neurons[name].consumers:
                places = self._zeroed.setdefault(site.parameter, {})
                places[site.dim] = torch.cat([places.get(site.dim, slices[site][:0]), slices[site]])

    def note(self, step: str, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Look at what a step has made of the model, and keep it if it is the best so far."""
        distance = self._bench.near(model)
        self.distances[step] = distance if math.isfinite(distance) else math.inf
        self.names.update(values)
        if self.distances[step] < self.distances[self.best]:
            self.best, self.tensors = step, values

    def changed(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a model of dense shape, each once, that are not what zeroing alone would leave."""
        dense = tensors_of(self._bench.model)
        seen: set[int] = set()
        found = {}
        for name, tensor in tensors_of(model).items():
            follows = name in self._lengths  # changed with its direction, and only then
            moved = name in self._bench.rearranged or not torch.equal(tensor, self._silent(name, dense[name]))
            if id(tensor) not in seen and not follows and moved:
                found[name] = tensor.detach().clone()
            seen.add(id(tensor))
        return found | {
            name: model.get_parameter(name).detach().clone()
            for name, direction in self._lengths.items()
            if direction in found
        }

    def _silent(self, name: str, dense: Tensor) -> Tensor:
        places = self._zeroed.get(name, {})
        silent = dense.detach().clone() if places else dense
        for dim, positions in places.items():
            silent.index_fill_(dim, positions.to(dense.device), 0)
        return silent

    def scattered(self, pruned: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
        """The values in a sliced model, in the shapes of the dense one."""
        return repaired_in(pruned, self._bench.model, self._bench.neurons, self._gone, names)


def _norms(bench: Bench, pruned: nn.Module, steps: _Steps) -> None:
    """Re-estimate the batch norms of a copy of dense shape, where that brings the answers nearer."""
    if not tracking(pruned):
        return
    before = {name: buffer.clone() for name, buffer in pruned.named_buffers()}
    real = calibration(bench.raw)
    if reestimate(pruned, [real.batches[number] for number in real.seen]):
        steps.note("batch norms", pruned, steps.changed(pruned))
    if steps.best != "batch norms":
        for name, buffer in pruned.named_buffers():
            buffer.copy_(before[name])


def _train(bench: Bench, pruned: nn.Module, work: Work, seed: int, steps: _Steps) -> list[Trained]:
    """Train `pruned`, which is sliced, in place."""
    own = _trainable(pruned, bench.course.blocks)
    everything = [parameter for parameters in own.values() for parameter in parameters]
    ids = set(map(id, everything))
    names = {name for name, tensor in pruned.named_parameters() if id(tensor) in ids} | steps.names
    blocks = reconstruct_blocks(
        bench.stages(),
        bench.stages(pruned),
        steps=work.block_steps,
        parameters=lambda block: own.get(block, []),
        seed=seed,
    )
    steps.note("blocks", pruned, steps.scattered(pruned, names))
    if work.answer_steps:
        blocks.append(reconstruct_answers(bench.stages(), pruned, everything, steps=work.answer_steps, seed=seed))
        steps.note("answers", pruned, steps.scattered(pruned, names))
    return blocks


def _trainable(model: nn.Module, blocks: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each block that belong to it alone."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        block = next((b for b in blocks if name.startswith(f"{b}.")), "")
        owners.setdefault(id(parameter), set()).add(block)
    return {
        block: [
            parameter
            for parameter in model.get_submodule(block).parameters()
            if owners[id(parameter)] == {block} and parameter.is_floating_point()
        ]
        for block in (blocks or ("",))
    }
