"""Removing individual neurons by their numbers."""

from collections.abc import Iterable, Mapping

from torch import nn

from pruner.apply import check, prune_
from pruner.companions import Companions
from pruner.current_map import current_map
from pruner.plan import PruningPlan
from pruner.prune_result import PruneResult


class NeuronPruner:
    """Removes the neurons you name, with no score, target or limit in between but one: no layer becomes empty.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> NeuronPruner().prune_neuron(model, "0", 3).neurons_after
    7
    """

    def prune_neuron(
        self, model: nn.Module, layer: str, neuron: int, dry_run: bool = False, *, optimizer: Companions | None = None
    ) -> PruneResult:
        """Remove one neuron of a layer, in place; a dry run raises and returns the same and changes nothing.

        Raises `PlanError`, `UnknownLayerError` or `VerificationError`, as `prune_` does; the model then is as it was.
        """
        return self.prune_neurons(model, {layer: [neuron]}, dry_run, optimizer=optimizer)

    def prune_neurons(
        self,
        model: nn.Module,
        neurons: Mapping[str, Iterable[int]],
        dry_run: bool = False,
        *,
        optimizer: Companions | None = None,
    ) -> PruneResult:
        """Remove neurons of several layers at once, in place: `{"conv1": [0, 5], "fc1": [7]}`.

        Raises what `prune_neuron` raises; either all of them go or none.
        """
        operate = check if dry_run else prune_
        return operate(model, PruningPlan(neurons), current_map(model), optimizer=optimizer)
