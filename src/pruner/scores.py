"""What a neuron is worth: the size of its own weights, and its activity where that is known.

score = magnitude_weight × magnitude + activity_weight × activity, each divided by its mean over the group, so that 1 is
an average neuron of its layer, whatever the layer's size and scale, and layers can be compared. The lowest go first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from tracker.activity import ActivityStats
from tracker.errors import DataError
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations

Scores = dict[str, Tensor]
"""A float64 tensor of shape (size,) on the CPU for every group."""


@dataclass(frozen=True)
class KnownActivity:
    """What is known of the neurons' activity: for the groups that were tracked, one value a neuron."""

    mean_magnitude: Scores = field(default_factory=dict)
    firing_frequency: Scores = field(default_factory=dict)

    @classmethod
    def of(cls, source: ActivityStats | Recommendations | None) -> Self:
        """The activity that a tracker's statistics, or recommendations made from them, carry."""
        if source is None:
            return cls()
        layers = (
            source.items()
            if isinstance(source, ActivityStats)
            else ((name, layer.activity) for name, layer in source.layers.items() if layer.activity is not None)
        )
        magnitude, firing = {}, {}
        for name, activity in layers:
            magnitude[name] = torch.as_tensor(activity.mean_magnitude, dtype=torch.float64)
            firing[name] = torch.as_tensor(activity.firing_frequency, dtype=torch.float64)
        return cls(magnitude, firing)

    def check(self, neurons: NeuronMap) -> None:
        """Raise `DataError` where a group was tracked with another number of neurons than it has."""
        for group in neurons:
            for values in (self.mean_magnitude, self.firing_frequency):
                if group.name in values and len(values[group.name]) != group.size:
                    raise DataError(
                        f"Layer '{group.name}' has {group.size} neurons, and its activity was measured on "
                        f"{len(values[group.name])}.",
                        hint="Track the model as it is now.",
                    )


_PIECE = 2**18
"""So many weights are looked at at a time."""


def magnitude(model: nn.Module, neurons: NeuronMap) -> Scores:
    """L2 norm of every neuron's producer weights, over all of its slices, biases left out.

    Raises `DataError` for weights without values (on the meta device).
    """
    return {name: summed.sqrt() for name, (summed, _) in _over_producers(model, neurons, 2).items()}


def mean_weight(model: nn.Module, neurons: NeuronMap) -> Scores:
    """Mean |w| over the same weights as `magnitude`: on the scale of a single weight, whatever the fan-in.

    Raises `DataError` for weights without values (on the meta device).
    """
    return {name: summed / count for name, (summed, count) in _over_producers(model, neurons, 1).items()}


def combined(
    magnitudes: Mapping[str, Tensor], activities: Mapping[str, Tensor], magnitude_weight: float, activity_weight: float
) -> Scores:
    """magnitude_weight × magnitude + activity_weight × activity, each relative to its mean over the group.

    A group of unknown activity is scored by magnitude alone, on the same scale.
    """
    return {
        name: magnitude_weight * relative(values) + activity_weight * relative(activities[name])
        if name in activities
        else relative(values)
        for name, values in magnitudes.items()
    }


def relative(values: Tensor) -> Tensor:
    """`values` (size,) over their mean; zeros where all are zero. What is not finite counts as infinitely important."""
    finite = torch.isfinite(values)
    mean = values[finite].mean() if finite.any() else values.new_zeros(())
    scaled = values / mean if mean > 0 else torch.zeros_like(values)
    return torch.where(finite, scaled, torch.inf)


def _over_producers(model: nn.Module, neurons: NeuronMap, order: int) -> dict[str, tuple[Tensor, int]]:
    """For every group the sum of |w| ** order over each neuron's producer weights, (size,), and how many those are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    result = {}
    for group in neurons:
        sites = [site for site in group.producers if site.parameter in parameters]
        # A bias says nothing about what a neuron does: one of minus a million makes it silent. So only weights count,
        # where there are any; a tied one, which has several names, counts once.
        sites = [site for site in sites if parameters[site.parameter].dim() > 1] or sites
        slices = {
            (id(parameters[site.parameter]), site.dim): (parameters[site.parameter], site.dim, group.members[site])
            for site in sites
        }
        summed, count = torch.zeros(group.size, dtype=torch.float64), 0
        for weight, dim, positions in slices.values():
            if weight.is_meta:
                raise DataError(
                    f"The weights of layer '{group.name}' are on the meta device: they have no values.",
                    hint="Load the weights first.",
                )
            summed += _powers(weight.detach(), dim, order)[positions].sum(1)
            count += weight.numel() // weight.shape[dim] * positions.shape[1]
        result[group.name] = summed, max(count, 1)
    return result


def _powers(weight: Tensor, dim: int, order: int) -> Tensor:
    """The sum of |w| ** order over all dimensions but one, a piece of the weights at a time, in their own type, or
    float32 if that is shorter, which is exact to about 1e-5.
    """
    if weight.dim() == 1:
        return (weight.abs().double() ** order).cpu()
    wide = torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype
    others = [d for d in range(weight.dim()) if d != dim % weight.dim()]
    rows = max(1, _PIECE // max(1, weight[0].numel()))
    sums = []
    for piece in weight.split(rows):
        powers = piece.to(wide)
        sums.append((powers.abs() if order == 1 else powers.square()).sum(others).double())
    return (torch.cat(sums) if dim % weight.dim() == 0 else torch.stack(sums).sum(0)).cpu()
