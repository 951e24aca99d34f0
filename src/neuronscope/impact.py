"""What would happen if these neurons went: the model runs with and without them, and nothing about it is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neuronscope.ablation import Ablation, checked_ablation, fillers
from neuronscope.alone import Pair, approximate_impacts, impacts_alone
from neuronscope.answer_cache import AnswerCache
from neuronscope.importance import LayerImportance, estimated, importance_of
from neuronscope.inputs import batches_of
from neuronscope.layers import Layers
from neuronscope.movement import RISKY, SAFE, Movement
from neuronscope.quantized import dequantized
from neuronscope.reading import continuations, top_tokens
from neuronscope.safe_set import SafeSet, largest_safe
from neuronscope.trials import Trials, check_room
from pruner.current_map import current_map
from tracker.admission import admitted
from tracker.batches import evaluating
from tracker.errors import DataError
from tracker.files import write_json
from tracker.neuron_map import NeuronMap

PROBES = 8
"""Backward passes for the order in which neurons are tried for a safe set."""
_AFFECTED = 0.1
"""A neuron further on is affected when it changes by more than this share of its layer's root mean square."""

_KEPT_BYTES = 256_000_000
"""What the model says with all its neurons is kept for the next set on the same inputs, up to this size."""


@dataclass(frozen=True, eq=False)
class PruningImpact:
    """What a model says without some neurons.

    `impact_score` is on the scale of `neuronscope.movement`; `metrics` holds the other measures, and `ablation` how the
    neurons were taken out (see `neuronscope.ablation`). The activations are those further on, of
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

    What was asked before about the same weights is answered from memory.

    Args:
        model: any model that the tracker can map.
        tokenizer: for models that read texts.
        neurons: the model's neuron map; by default the one known, else it is discovered.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None, neurons: NeuronMap | None = None) -> None:
        self.model = admitted(dequantized(model))
        self.tokenizer = tokenizer
        self.neurons = neurons or current_map(self.model)
        self.layers = Layers.of(self.neurons)
        self.cache = AnswerCache(self.model)
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
        chosen: Sequence[Pair],
        inputs: Any,
        *,
        ablation: Ablation = "zero",
        batch_size: int = 10,
    ) -> PruningImpact:
        """The same for (layer, neuron) pairs of any layers."""
        checked_ablation(ablation)
        self.layers.split(chosen)

        def run() -> PruningImpact:
            trials = self.cache.recent((inputs, batch_size), lambda: self._trials(inputs, batch_size))
            try:
                return self._impact(trials, chosen, ablation)
            finally:
                if trials.nbytes > _KEPT_BYTES:
                    self.cache.forget_recent()

        asked = ("simulate", sorted(set(map(tuple, chosen))), inputs, ablation, batch_size)
        with self._running():
            return self.cache.get(asked, run)

    def continuations(
        self, chosen: Sequence[Pair], texts: Sequence[str] | str, *, ablation: Ablation = "zero", tokens: int = 20
    ) -> list[dict[str, str]]:
        """How each text goes on with (`before`) and without (`after`) the neurons, `tokens` tokens further."""
        checked_ablation(ablation)
        texts = [texts] if isinstance(texts, str) else list(texts)
        gone = self.layers.split(chosen)
        with self._running():
            batches = batches_of(self.model, self.tokenizer, texts)
            fill = fillers(self.model, self.neurons, gone, batches, "mean" if ablation == "repaired" else ablation)
            return continuations(self.model, self.tokenizer, self.neurons, fill, texts, tokens)

    def top_tokens(
        self, layer_index: int, neuron_index: int, texts: Sequence[str] | str, count: int = 10
    ) -> list[dict[str, Any]]:
        """The tokens at which a neuron is most active, in their context; see `neuronscope.reading.top_tokens`."""
        layer = self.layers[layer_index]
        layer.split([neuron_index])
        texts = [texts] if isinstance(texts, str) else list(texts)
        with self._running():
            return top_tokens(self.model, self.tokenizer, layer, neuron_index, texts, count)

    def analyze_neuron_importance(
        self, input_texts: Any, layer_index: int, *, batch_size: int = 10, **options: Any
    ) -> LayerImportance:
        """Every neuron of a layer: its activity, and what its absence alone does; see `importance_of`."""
        return self._importance([layer_index], input_texts, batch_size, options)[0]

    def analyze_model_importance(
        self, input_texts: Any, *, batch_size: int = 10, **options: Any
    ) -> list[LayerImportance]:
        """The same for all layers at once: a probe is one pass forward and backward, however many layers there are."""
        return self._importance(range(len(self.layers)), input_texts, batch_size, options)

    def batch_pruning_analysis(
        self,
        input_texts: Any,
        pruning_candidates: Sequence[Mapping[str, int]],
        batch_size: int = 10,
        *,
        approximate: bool = False,
    ) -> dict[str, Any]:
        """Each of the candidates alone, and all of them together, over all inputs; JSON-ready data.

        `batch_size` bounds the memory: so many inputs, and so many candidates, at a time. `approximate` estimates the
        candidates, and stops as soon as safe and risky are told apart (see `neuronscope.alone`); what they do together
        is always found out exactly.

        Raises `DataError` for a candidate that is not there, or no mapping of `layer_index` and `neuron_index`.
        """
        chosen = [_pair(candidate) for candidate in pruning_candidates]
        self.layers.split(chosen)

        def run() -> dict[str, Any]:
            return self._batch(input_texts, chosen, batch_size, approximate)

        with self._running():
            results = self.cache.get(("batch", chosen, input_texts, batch_size, approximate), run)
        self._done.append(results)
        return results

    def safe_set(
        self,
        inputs: Any,
        *,
        candidates: Sequence[Pair] | None = None,
        threshold: float = SAFE,
        ablation: Ablation = "zero",
        batch_size: int = 10,
    ) -> SafeSet:
        """The largest set found of neurons whose cumulative impact stays below the threshold; see `largest_safe`.

        Args:
            candidates: (layer, neuron) pairs to choose from; by default all neurons.
        """
        checked_ablation(ablation)
        wanted = None if candidates is None else list(dict.fromkeys(candidates))
        self.layers.split(wanted or ())
        with self._running():
            trials = self._trials(inputs, batch_size)
            scores = self._ranks(trials)
            order = sorted(scores if wanted is None else wanted, key=scores.__getitem__)

            def impact(chosen: Sequence[Pair]) -> float:
                fill = fillers(self.model, self.neurons, self.layers.split(chosen), trials.batches, ablation)
                return trials.scale.movement(trials.run(fill, None)[0]).score

            return largest_safe(order, impact, threshold)

    def export_pruning_analysis(self, path: str | Path) -> Path:
        """Write all that was simulated so far as JSON, whole or not at all; raises `StorageError`."""
        write_json(path, {"type": "impact", "results": self._done})
        return Path(path)

    def _importance(
        self, layers: Sequence[int], inputs: Any, batch_size: int, options: Mapping[str, Any]
    ) -> list[LayerImportance]:
        chosen = [self.layers[layer] for layer in layers]

        def run() -> list[LayerImportance]:
            return importance_of(
                self.model, chosen, batches_of(self.model, self.tokenizer, inputs, batch_size), **options
            )

        with self._running():
            return self.cache.get(("importance", list(layers), inputs, batch_size, dict(options)), run)

    def _impact(self, trials: Trials, chosen: Sequence[Pair], ablation: Ablation) -> PruningImpact:
        further = max((layer for layer, _ in chosen), default=-1) + 1
        _, before = trials.dense(further)
        fill = fillers(self.model, self.neurons, self.layers.split(chosen), trials.batches, ablation)
        found, after = trials.run(fill, further)
        movement = trials.scale.movement(found)
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

    def _batch(self, inputs: Any, chosen: Sequence[Pair], batch_size: int, approximate: bool) -> dict[str, Any]:
        trials = self._trials(inputs, batch_size)
        alone: list[dict[str, Any]] = []
        if chosen:
            alone = (approximate_impacts if approximate else impacts_alone)(trials, chosen, batch_size)
        together = self._impact(trials, chosen, "zero") if chosen else None
        scores = [entry["impact_score"] for entry in alone]
        high = [entry for entry, score in zip(alone, scores, strict=True) if score > RISKY]
        return {
            "individual_impacts": alone,
            "cumulative_impact": None if together is None else together.to_json(),
            "recommendations": {
                "safe_to_prune": sum(score < SAFE for score in scores),
                "risky_to_prune": sum(score > RISKY for score in scores),
                "suggested_batch_size": self._largest_safe(trials, alone, together),
                "high_impact_neurons": [
                    {key: entry[key] for key in ("layer_index", "neuron_index", "impact_score")} for entry in high
                ],
            },
        }

    def _ranks(self, trials: Trials) -> dict[Pair, float]:
        """Every neuron by its estimated impact; exact where no gradient reaches them."""
        layers = self.layers.all
        found = estimated(self.model, layers, trials.batches, "second-order", PROBES)
        if found is None:
            exact = importance_of(self.model, layers, trials.batches, method="exact")
            return {(entry.layer_index, entry.neuron_index): entry.impact_score for one in exact for entry in one}
        return {(layer, neuron): score for layer, own in found.items() for neuron, score in enumerate(own.tolist())}

    def _largest_safe(self, trials: Trials, alone: Sequence[Mapping[str, Any]], together: PruningImpact | None) -> int:
        """How many of the candidates can go at once, the least first, with a cumulative impact that is safe."""
        if together is None or together.impact_score < SAFE:
            return len(alone)
        order = sorted(alone, key=lambda entry: float(entry["impact_score"]))
        pairs = [(int(entry["layer_index"]), int(entry["neuron_index"])) for entry in order]

        def impact(chosen: Sequence[Pair]) -> float:
            fill = fillers(self.model, self.neurons, self.layers.split(chosen), trials.batches, "zero")
            return trials.scale.movement(trials.run(fill, None)[0]).score

        return len(largest_safe(pairs, impact, SAFE, most=0).neurons)

    def compare_sets(self, sets: Mapping[str, Sequence[Pair]], inputs: Any, *, batch_size: int = 10) -> dict[str, Any]:
        """What each of several plans does, by name, with how many neurons it shares with each of the others."""
        for chosen in sets.values():
            self.layers.split(chosen)
        members = {name: set(map(tuple, chosen)) for name, chosen in sets.items()}
        return {
            name: {
                "neurons": len(members[name]),
                "shared": {other: len(members[name] & members[other]) for other in sets if other != name},
                **self.simulate(chosen, inputs, batch_size=batch_size).to_json(),
            }
            for name, chosen in sets.items()
        }

    def _trials(self, inputs: Any, batch_size: int) -> Trials:
        batches = batches_of(self.model, self.tokenizer, inputs, batch_size)
        check_room(self.model, batches)
        return Trials(self.model, self.neurons, self.layers, batches)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._lock, evaluating(self.model):
            yield


_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


def _pair(candidate: Mapping[str, int]) -> Pair:
    try:
        return candidate["layer_index"], candidate["neuron_index"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"A candidate is {str(candidate)[:60]!r}.", hint='Write {"layer_index": 0, "neuron_index": 5}.'
        ) from error
