"""How much may still be removed: every layer and the whole model keep what the configuration says."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pruner.config import PruningConfig
from tracker.errors import PlanError
from tracker.neuron_map import NeuronGroup, NeuronMap


class LimitError(PlanError):
    """More is to go than the limits allow."""


def checked_share(value: object, what: str) -> float:
    """`value` if it is a number from 0 to 1; raises `PlanError`, which calls it `what`, otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PlanError(f"{what} = {value!r} is not a number from 0 to 1.", hint="Give the share of neurons to remove.")
    return float(value)


def share_of(share: float, size: int) -> int:
    """How many neurons a share is: rounded down, so that no share is ever exceeded.

    >>> share_of(0.3, 10), share_of(0.25, 10)
    (3, 2)
    """
    return math.floor(share * size + 1e-9)  # 0.3 * 10 is 2.9999999999999996


def sizes_now(neurons: NeuronMap, layers: Iterable[str]) -> dict[str, int]:
    """The sizes of `layers`, which all had several neurons once, in a map of the same model after pruning.

    A layer that is down to one neuron has nothing to remove any more, so the map does not show it.
    """
    sizes = {entry.name: entry.size for entry in neurons.frozen} | {group.name: group.size for group in neurons}
    return {name: sizes.get(name, 1) for name in layers}


def step_of(group: NeuronGroup, round_to: int) -> int:
    """By how many neurons `group` may grow or shrink so that its widths stay multiples of `round_to`.

    A width is what a matrix product or a convolution runs over: neurons times positions a neuron. So heads of 64 may go
    one by one where `round_to` is 16, and heads of 24 in pairs. What attention holds once a head, such as a table of
    position biases, is no such width. Whole experts are not multiplied with each other, and go one by one. What an
    operator demands of the group (`multiple`) holds in any case.
    """
    if group.kind == "expert" and not group.exact:
        return 1
    widths = {read.positions.shape[1] for read in group.reads} | {group.members[s].shape[1] for s in group.producers}
    if group.kind == "attention":
        widths -= {1}
    return math.lcm(group.multiple, *(round_to // math.gcd(round_to, width) for width in widths or {1}))


@dataclass(frozen=True)
class Limits:
    """What a model may still lose.

    `original` is the size of every layer when the model was first seen, `current` its size now; a layer that has shrunk
    to a single neuron is no group any more, and is counted all the same. `open` are the layers that may lose neurons at
    all. `least` is how many neurons a layer keeps, by `min_neurons_per_layer` and by what it needs itself, and `room`
    how many it may still lose under that and `max_sparsity_per_layer`; `total` is how many the model may still lose
    under `max_pruning_ratio`. A layer that loses neurons keeps a multiple of its `step`, which `round_to` decides.
    """

    original: Mapping[str, int]
    current: Mapping[str, int]
    open: frozenset[str]
    least: Mapping[str, int]
    room: Mapping[str, int]
    step: Mapping[str, int]
    total: int
    config: PruningConfig

    @classmethod
    def of(cls, neurons: NeuronMap, first: NeuronMap, config: PruningConfig, layers: Collection[str]) -> Self:
        """The limits of a model with the map `neurons` that had the map `first` when it was first seen.

        `layers` are those that may lose neurons.
        """
        groups = {group.name: group for group in neurons}
        original = {**{name: group.size for name, group in groups.items()}, **{g.name: g.size for g in first}}
        current = sizes_now(neurons, original)
        thresholds = config.thresholds
        least = {name: max(thresholds.min_neurons_per_layer, group.minimum) for name, group in groups.items()}
        room = dict.fromkeys(original, 0)
        for name, group in groups.items():
            if name in layers:
                by_share = share_of(thresholds.max_sparsity_per_layer, original[name]) - (original[name] - group.size)
                room[name] = max(0, min(by_share, group.size - least[name]))
        everything = sum(original.values())
        gone = everything - sum(current.values())
        return cls(
            original=original,
            current=current,
            open=frozenset(layers),
            least=least,
            room=room,
            step={name: step_of(group, config.strategy.round_to) for name, group in groups.items()},
            total=max(0, share_of(config.validation.max_pruning_ratio, everything) - gone),
            config=config,
        )

    def wanted(self, share: float, layers: Collection[str]) -> int:
        """How many neurons `layers` together still have to lose until `share` of what they had at first is gone."""
        first, now = (sum(sizes[name] for name in layers) for sizes in (self.original, self.current))
        return max(0, share_of(share, first) - (first - now))

    def shortfall(self, share: float, layers: Collection[str]) -> str | None:
        """Why `layers` cannot lose `share` of their first size, with the numbers; None if they can."""
        wanted = self.wanted(share, layers)
        room = sum(self.room[name] for name in layers)
        if wanted <= min(room, self.total):
            return None
        where = f"Layer '{next(iter(layers))}'" if len(layers) == 1 else "The model"
        return (
            f"{where} cannot lose a share of {share:g}: that is {wanted} more neurons, and only "
            f"{min(room, self.total)} may go ({self._in_words(room, layers)})."
        )

    def check(self, remove: Mapping[str, Collection[int]]) -> None:
        """Raise `PlanError` if the removal of these neurons would break a limit."""
        for name, neurons in remove.items():
            if name not in self.open and len(neurons):
                raise PlanError(
                    f"The strategy removes neurons of layer '{name}', which it may not touch: the layer is not exact, "
                    f"or strategy.include, strategy.exclude or strategy.kinds leave it out.",
                    hint="Let the strategy choose from given.neurons, or change these options.",
                )
            if len(neurons) > self.room[name]:
                raise LimitError(
                    f"Layer '{name}' may lose {self.room[name]} of its {self.current[name]} neurons, not "
                    f"{len(neurons)} ({self._in_words(self.room[name], [name])}).",
                    hint="Remove fewer neurons, or change these limits in the configuration.",
                )
        total = sum(len(neurons) for neurons in remove.values())
        if total > self.total:
            raise LimitError(
                f"The model may lose {self.total} more neurons, not {total} ({self._in_words(total, ())}).",
                hint="Remove fewer neurons, or raise validation.max_pruning_ratio.",
            )

    def _in_words(self, room: int, layers: Iterable[str]) -> str:
        """The limits that bind: those of the layers, or that of the model where it is the tighter one."""
        if self.total < room:
            return f"validation.max_pruning_ratio = {self.config.validation.max_pruning_ratio:g}"
        thresholds = self.config.thresholds
        least = thresholds.min_neurons_per_layer
        needs = [f", '{name}' needs {self.least[name]}" for name in layers if self.least.get(name, 0) > least]
        return (
            f"thresholds.max_sparsity_per_layer = {thresholds.max_sparsity_per_layer:g}, "
            f"thresholds.min_neurons_per_layer = {least}{''.join(needs)}"
        )
