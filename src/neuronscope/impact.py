"""What would happen if these neurons went: the model runs with and without them, and nothing about it is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuronscope.importance import NeuronImportance, importance_of
from neuronscope.inputs import batches_of
from neuronscope.layers import Layers
from neuronscope.movement import RISKY, SAFE, Movement, Scale
from pruner.compensation.distance import Answer, answer
from pruner.current_map import current_map
from tracker.admission import admitted
from tracker.batches import Batch, evaluating, forward
from tracker.errors import ConfigError, DataError
from tracker.files import write_json
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap

Ablation = Literal["zero", "mean"]
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean")

_AFFECTED = 0.1
"""A neuron further on is affected when it changes by more than this share of its layer's root mean square."""


@dataclass(frozen=True, eq=False)
class PruningImpact:
    """What a model says without some neurons.

    `impact_score` is on the scale of `neuronscope.movement`; `metrics` holds the other measures, and `ablation` how the
    neurons were taken out: set to zero, or to their mean over these inputs. The activations are those further on, of
    the neurons of the next layer, for the last one the model's answers: (places, neurons), with their mean and largest
    absolute change, and `affected_neurons` among them.
    """

    impact_score: float
    mean_change: float
    max_change: float
    affected_neurons: list[int]
    safe_to_prune: bool
    metrics: Movement
    ablation: Ablation
    original_activations: NDArray[np.float32] = field(repr=False)
    pruned_activations: NDArray[np.float32] = field(repr=False)

    @property
    def activation_change(self) -> NDArray[np.float32]:
        """Absolute change of each of the activations further on, (places, neurons)."""
        change: NDArray[np.float32] = np.abs(self.pruned_activations - self.original_activations)
        return change

    def to_json(self) -> dict[str, Any]:
        """The impact as JSON-ready data, without the activations."""
        return {
            "impact_score": self.impact_score,
            "mean_change": self.mean_change,
            "max_change": self.max_change,
            "affected_neurons": self.affected_neurons,
            "safe_to_prune": self.safe_to_prune,
            "ablation": self.ablation,
            "metrics": asdict(self.metrics),
        }


class PruningImpactAnalyzer:
    """Tries a model with and without neurons. It is never changed or copied; calls from several threads take turns.

    Args:
        model: any model that the tracker can map.
        tokenizer: for models that read texts.
        neurons: the model's neuron map; by default the one known, else it is discovered.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, neurons: NeuronMap | None = None) -> None:
        self.model = admitted(model)
        self.tokenizer = tokenizer
        self.neurons = neurons or current_map(self.model)
        self.layers = Layers.of(self.neurons)
        self._lock = _locks.setdefault(self.model, RLock())
        self._done: list[dict[str, Any]] = []

    def simulate_neuron_pruning(
        self,
        layer_index: int,
        neuron_indices: Iterable[int],
        input_text: Any,
        *,
        ablation: Ablation = "zero",
    ) -> PruningImpact:
        """The impact of taking all of these neurons out at once, on one input or several.

        Raises `UnknownLayerError` and `DataError` for a layer or a neuron that is not there, and for bad inputs.
        """
        chosen = [(layer_index, neuron) for neuron in neuron_indices]
        self.layers[layer_index]
        if not chosen:
            raise DataError("No neurons are named.", hint="Give at least one index.")
        impact = self.simulate(chosen, input_text, ablation=ablation)
        self._done.append({"layer_index": layer_index, "neuron_indices": [n for _, n in chosen], **impact.to_json()})
        return impact

    def simulate(
        self,
        chosen: Sequence[tuple[int, int]],
        inputs: Any,
        *,
        ablation: Ablation = "zero",
        batch_size: int = 10,
    ) -> PruningImpact:
        """The same for (layer, neuron) pairs of any layers."""
        if ablation not in ABLATIONS:
            raise ConfigError(f"ablation = {ablation!r} is unknown.", hint=f"Use one of {', '.join(ABLATIONS)}.")
        gone = self.layers.split(chosen)
        last = max(layer for layer, _ in chosen)
        with self._running():
            batches = batches_of(self.model, self.tokenizer, inputs, batch_size)
            means = self._means(gone, batches) if ablation == "mean" else {}
            dense, before = self._run(batches, {}, {}, last + 1)
            found, after = self._run(batches, gone, means, last + 1)
            targets = [_targets(self.model, batch, one) for batch, one in zip(batches, dense, strict=True)]
            movement = Scale(dense, targets).movement(found)
        change = np.abs(after - before)
        scale = float(np.sqrt(np.mean(before.astype(np.float64) ** 2))) or 1.0
        return PruningImpact(
            impact_score=movement.score,
            mean_change=float(change.mean()),
            max_change=float(change.max()),
            affected_neurons=np.flatnonzero(change.mean(0) > _AFFECTED * scale).tolist(),
            safe_to_prune=movement.score < SAFE,
            metrics=movement,
            ablation=ablation,
            original_activations=before,
            pruned_activations=after,
        )

    def analyze_neuron_importance(self, input_texts: Any, layer_index: int, **options: Any) -> list[NeuronImportance]:
        """Every neuron of a layer: its activity, and what its absence alone does; see `importance_of`."""
        layer = self.layers[layer_index]
        with self._running():
            batches = batches_of(self.model, self.tokenizer, input_texts, options.pop("batch_size", 10))
            return importance_of(self.model, layer, batches, **options)

    def batch_pruning_analysis(
        self, input_texts: Any, pruning_candidates: Sequence[Mapping[str, int]], batch_size: int = 10
    ) -> dict[str, Any]:
        """Each of the candidates alone, and all of them together, over all inputs; JSON-ready data.

        Raises `DataError` for a candidate that is not there, or no mapping of `layer_index` and `neuron_index`.
        """
        chosen = [_pair(candidate) for candidate in pruning_candidates]
        self.layers.split(chosen)
        alone: list[dict[str, Any]] = []
        for layer, neuron in chosen:
            impact = self.simulate([(layer, neuron)], input_texts, batch_size=batch_size)
            kept = ("impact_score", "mean_change", "max_change", "safe_to_prune", "metrics")
            answers = impact.to_json()
            alone.append({"layer_index": layer, "neuron_index": neuron} | {key: answers[key] for key in kept})
        together = self.simulate(chosen, input_texts, batch_size=batch_size) if chosen else None
        scores = [entry["impact_score"] for entry in alone]
        high = [entry for entry, score in zip(alone, scores, strict=True) if score > RISKY]
        results = {
            "individual_impacts": alone,
            "cumulative_impact": None if together is None else together.to_json(),
            "recommendations": {
                "safe_to_prune": sum(score < SAFE for score in scores),
                "risky_to_prune": sum(score > RISKY for score in scores),
                "suggested_batch_size": self._largest_safe(alone, together, input_texts, batch_size),
                "high_impact_neurons": [
                    {key: entry[key] for key in ("layer_index", "neuron_index", "impact_score")} for entry in high
                ],
            },
        }
        self._done.append(results)
        return results

    def export_pruning_analysis(self, path: str | Path) -> Path:
        """Write all that was simulated so far as JSON, whole or not at all; raises `StorageError`."""
        write_json(path, {"type": "impact", "results": self._done})
        return Path(path)

    def _largest_safe(
        self, alone: Sequence[Mapping[str, Any]], together: PruningImpact | None, inputs: Any, batch_size: int
    ) -> int:
        """How many of the candidates can go at once, the least first, with a cumulative impact that is safe.

        By bisection: the impact of more neurons is more, as a rule.
        """
        if together is None or together.impact_score < SAFE:
            return len(alone)
        order = sorted(alone, key=lambda entry: float(entry["impact_score"]))
        pairs = [(int(entry["layer_index"]), int(entry["neuron_index"])) for entry in order]
        low, high = 0, len(pairs)
        while high - low > 1:
            middle = (low + high) // 2
            safe = self.simulate(pairs[:middle], inputs, batch_size=batch_size).impact_score < SAFE
            low, high = (middle, high) if safe else (low, middle)
        return low

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock, evaluating(self.model):
            yield

    def _run(
        self, batches: Sequence[Batch], gone: Mapping[str, Sequence[int]], means: Mapping[str, Tensor], further: int
    ) -> tuple[list[Answer], NDArray[np.float32]]:
        """The answers with these neurons taken out, and the activations of layer number `further`."""
        next_groups = self.layers.all[further].groups if further < len(self.layers) else ()
        watched = [group for group in next_groups if group.name not in gone]
        heard: dict[str, dict[int, Tensor]] = {}
        at = 0

        def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor | None:
            if any(group is one for one in watched):
                heard.setdefault(group.name, {}).setdefault(at, _by_neuron(x, read, group, batches[at]))
            return _without(x, read, gone[group.name], means.get(group.name)) if group.name in gone else None

        found: list[Answer] = []
        groups = [group for group in self.neurons if group.name in gone or any(group is one for one in watched)]
        with tap(self.model, groups, visit):
            for at, batch in enumerate(batches):  # noqa: B007 (the visitor reads it)
                found.append(answer(forward(self.model, batch), batch))
        if heard:
            parts = [torch.cat(list(heard[group.name].values())) for group in watched]
            longest = max(map(len, parts))
            further_on = torch.cat([part for part in parts if len(part) == longest], 1)
        else:
            further_on = torch.cat([one.values for one in found])
        return found, further_on.float().cpu().numpy()

    def _means(self, gone: Mapping[str, Sequence[int]], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The mean activation of every neuron of these groups, padding left out."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def visit(group: NeuronGroup, read: Read, x: Tensor) -> None:
            values = _by_neuron(x, read, group, batch, mean=False).double()
            sums[group.name] = sums.get(group.name, torch.zeros_like(values[0])) + values.sum(0)
            counts[group.name] = counts.get(group.name, 0) + len(values)

        with tap(self.model, [self.neurons[name] for name in gone], visit):
            for batch in batches:
                forward(self.model, batch)
        return {name: total / counts[name] for name, total in sums.items()}


_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


def _pair(candidate: Mapping[str, int]) -> tuple[int, int]:
    try:
        return candidate["layer_index"], candidate["neuron_index"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"A candidate is {str(candidate)[:60]!r}.", hint='Write {"layer_index": 0, "neuron_index": 5}.'
        ) from error


def _targets(model: nn.Module, batch: Batch, said: Answer) -> Tensor | None:
    """The right answers where they are known: the next token of a language model, -1 where there is none, or labels."""
    ids = batch.kwargs.get("input_ids")
    if not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        target = batch.target
        fits = target is not None and not target.is_floating_point() and target.numel() == len(said.values)
        return target.flatten() if target is not None and fits else None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not said.classes:
        return None
    following = torch.full_like(ids, -1)
    following[:, :-1] = ids[:, 1:]
    if batch.mask is not None:
        following[:, :-1][~batch.mask[:, 1:]] = -1
        following = following[batch.mask]
    following = following.flatten()
    vocabulary = said.values.shape[-1]
    return following if len(following) == len(said.values) and int(following.max()) < vocabulary else None


def _by_neuron(x: Tensor, read: Read, group: NeuronGroup, batch: Batch, *, mean: bool = True) -> Tensor:
    """What is read of each neuron: (places, size), or (places, size × k) where a neuron has several positions."""
    values = x.movedim(read.axis, -1)
    mask = batch.mask
    if mask is not None and values.dim() >= 3 and values.shape[:2] == mask.shape:
        values = values[mask]
    values = values.flatten(0, -2)[:, torch.from_numpy(read.positions.ravel()).to(x.device)]
    return values.unflatten(1, (group.size, -1)).mean(2) if mean else values


def _without(x: Tensor, read: Read, neurons: Sequence[int], mean: Tensor | None) -> Tensor:
    positions = torch.from_numpy(read.positions[list(neurons)].ravel()).to(x.device)
    if mean is None:
        return x.index_fill(read.axis, positions, 0)
    k = read.positions.shape[1]
    where = (torch.tensor(list(neurons)).unsqueeze(1) * k + torch.arange(k)).flatten().to(mean.device)
    shape = [1] * x.dim()
    shape[read.axis] = -1
    filled = mean[where].to(x.device, x.dtype).reshape(shape).expand_as(x.index_select(read.axis, positions))
    return x.index_copy(read.axis, positions, filled)
