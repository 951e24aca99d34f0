"""`PruningEngine`: the guide's interface to everything in this package."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from pruner import log, metrics, strategies, validation
from pruner import schedule as schedules
from pruner.backup import Backup
from pruner.companions import Companions
from pruner.config import PruningConfig, create_aggressive_config, create_conservative_config, create_default_config
from pruner.criteria_strategies import judge_of
from pruner.current_map import current_map
from pruner.decision import Request, decide
from pruner.execution import Execution, Results, carry_out, check_weights
from pruner.limits import checked_share
from pruner.plan import PruningPlan
from pruner.recommended import planned_without_model
from pruner.repairing import repair_for
from pruner.scope import Scope
from tracker.activity import ActivityStats
from tracker.admission import admitted_for_change, unwrapped
from tracker.discover import discover, last_discovered
from tracker.errors import ConfigError, PlanError, nearest
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations, load_recommendations


class PruningEngine:
    """Prunes models by recommendations, scores, layers or schedules, within the limits of a configuration.

    Shares are relative to a model as this engine first saw it, so that asking twice removes once. Every `prune_*`
    method changes the model in place, all of it or nothing, and returns a dictionary that is JSON throughout:

    `neurons_pruned`, `neurons_before`, `neurons_after`, `reduction` (share of the neurons before), `layers_affected`,
    `layers` (for each that loses neurons `before`, `after`, and of those `removed` their indices, `scores` and
    `reasons`), `parameters_before`, `parameters_after`, `dry_run`, `strategy`, `plan` (see `PruningPlan.from_json`),
    `candidates` (`layer`, `neuron`, `reason`, `score`), `verification` (see `VerificationReport`; None where nothing
    was verified), `warnings` and `repair` (see `Repaired.to_json`; None without data). A dry run takes the same path up
    to the commit: its numbers are those of the real run.

    All of them take these, by name: `data_loader`, real data to verify with, where otherwise the example inputs of the
    discovery serve, and by which the weights that stay are repaired (unless `repair.enabled` is off); and `optimizer`,
    whose state is to be cut along with the model.

    All of them raise `PlanError` (a share that is not from 0 to 1 or that a limit forbids, a model without neurons to
    remove, a pruned model that would not run), `UnknownLayerError`, `DataError` (NaN or Inf in weights or data),
    `DiscoveryError` (no inputs to look at the model with: call `discover(model, example_inputs)` first), `ConfigError`
    (an unknown `strategy.default_strategy`) and `VerificationError` (a check failed). The model then is as it was.

    Args:
        config_path: a YAML or JSON file.
        config: a configuration; by default `create_default_config()`.
        model: the model that `prune_from_json` takes where it is given none.
        output_dir: where `logs/pruner.log` goes, if `logging.log_to_file` is set.
    """

    def __init__(
        self,
        config_path: str | Path | None = None,
        config: PruningConfig | None = None,
        *,
        model: nn.Module | None = None,
        output_dir: str | Path = "outputs",
    ) -> None:
        if config_path is not None and config is not None:
            raise ConfigError("Both config_path and config are given.", hint="Give one of them.")
        self.config = PruningConfig.from_file(config_path) if config_path else config or create_default_config()
        self.model = model
        self.output_dir = Path(output_dir)
        self._first: WeakKeyDictionary[nn.Module, NeuronMap] = WeakKeyDictionary()
        self._backups: WeakKeyDictionary[nn.Module, Backup] = WeakKeyDictionary()
        self._schedules: dict[str, dict[str, Any]] = {}

    # --- by recommendations

    def prune_from_json(
        self,
        path: str | Path,
        model: nn.Module | None = None,
        dry_run: bool = False,
        *,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
    ) -> Results:
        """Remove what a tracker's recommendations file says; see `prune_by_recommendations`.

        Without a model here or in the constructor, nothing can be removed: the answer then is the validated `plan`, its
        `candidates`, `neurons_pruned` 0, and a `message` that says how to give a model.

        Raises `RecommendationError` for a malformed file and `StorageError` for one that cannot be read.
        """
        recommendations = load_recommendations(path)
        model = self.model if model is None else model
        if model is None:
            log.configure(self.config.logging, self.output_dir)
            return planned_without_model(recommendations, self.config)
        return self.prune_by_recommendations(
            model, recommendations, dry_run, data_loader=data_loader, optimizer=optimizer
        )

    def prune_by_recommendations(
        self,
        model: nn.Module,
        recommendations: Recommendations | Mapping[str, Any] | str | Path,
        dry_run: bool = False,
        *,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
        store: Callable[[nn.Module], Path] | None = None,
    ) -> Results:
        """Remove the recommended neurons first, then the lowest scores, up to `strategy.target_sparsity`.

        Recommended ones go in the order dead, constant, inactive, redundant. Layers whose activity the recommendations
        do not carry lose only what was recommended. Where widths are rounded, a step with more recommended neurons in
        it goes before one with fewer. `strategy.default_strategy` chooses. `store` writes the pruned
        model before it is verified, and returns the directory: that it can be loaded from there is one more check.

        Raises `RecommendationError` where they are malformed or were made for another model.
        """
        if not isinstance(recommendations, Recommendations):
            recommendations = load_recommendations(recommendations)
        request = self._request(self.config.strategy.default_strategy, None, recommendations=recommendations)
        return self._prune(model, request, dry_run, data_loader, optimizer, store)

    # --- by scores

    def prune_by_strategy(
        self,
        model: nn.Module,
        strategy: str | None = None,
        sparsity_ratio: float | None = None,
        dry_run: bool = False,
        *,
        activity: ActivityStats | None = None,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
    ) -> Results:
        """Remove a share of the neurons by any strategy; by default that of the configuration, to its target.

        `activity` are a tracker's statistics; without them, scores are the magnitudes alone. A layer in
        `strategy.layer_specific_sparsity` loses the share given there.
        """
        name = strategy or self.config.strategy.default_strategy
        return self._prune(
            model, self._request(name, sparsity_ratio, activity=activity), dry_run, data_loader, optimizer
        )

    def prune_by_magnitude(
        self,
        model: nn.Module,
        sparsity_ratio: float | None = None,
        dry_run: bool = False,
        *,
        activity: ActivityStats | None = None,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
    ) -> Results:
        """Remove the neurons with the lowest scores of the whole model; see `prune_by_strategy`."""
        request = self._request("magnitude", sparsity_ratio, activity=activity)
        return self._prune(model, request, dry_run, data_loader, optimizer)

    def prune_structured(
        self,
        model: nn.Module,
        layer_sparsity: Mapping[str, float] | None = None,
        dry_run: bool = False,
        *,
        activity: ActivityStats | None = None,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
    ) -> Results:
        """Remove a share of the neurons of each layer named, such as `{"conv1": 0.25, "fc1": 0.5}`.

        A layer that is named here loses them even if it is not exact or `strategy.exclude` names it. Without
        `layer_sparsity`, every layer that strategies may touch loses `strategy.target_sparsity` of its own neurons.
        """
        request = self._request("structured", None, activity=activity)
        if layer_sparsity is not None:
            _check_layers(layer_sparsity)
            request = Request(request.name, request.strategy, None, layer_sparsity, explicit=True, activity=activity)
        return self._prune(model, request, dry_run, data_loader, optimizer)

    # --- gradually

    def create_gradual_schedule(
        self, initial_sparsity: float, final_sparsity: float, num_epochs: int, schedule: str = "cubic"
    ) -> dict[str, Any]:
        """A schedule for `prune_for_epoch`: `schedule_id`, and `targets`, the share gone after every epoch.

        `schedule` is "cubic", "linear", "cosine" or "exponential"; see `pruner.schedule`. Raises `PlanError`, also
        where the final sparsity exceeds `validation.max_pruning_ratio`.
        """
        most = self.config.validation.max_pruning_ratio
        if checked_share(final_sparsity, "final sparsity") > most:
            raise PlanError(
                f"The final sparsity {final_sparsity} exceeds validation.max_pruning_ratio = {most:g}.",
                hint="Ask for less, or raise the limit.",
            )
        made = schedules.describe(
            f"{schedule}-{len(self._schedules) + 1}", initial_sparsity, final_sparsity, num_epochs, schedule
        )
        self._schedules[made["schedule_id"]] = made
        return made

    def prune_for_epoch(
        self,
        model: nn.Module,
        schedule_id: str,
        epoch: int,
        dry_run: bool = False,
        *,
        activity: ActivityStats | None = None,
        data_loader: Iterable[Any] | None = None,
        optimizer: Companions | None = None,
    ) -> Results:
        """Remove what a schedule wants gone after `epoch`, counted from 0. The same epoch again removes nothing more.

        The results also have `schedule_id`, `epoch`, `target_sparsity`, and `sparsity`, the share that is gone of all
        neurons that the layers it may touch had at first. Raises `PlanError` for an unknown schedule or epoch.
        """
        if schedule_id not in self._schedules:
            raise PlanError(
                f"There is no schedule '{schedule_id}'.{nearest(str(schedule_id), self._schedules)}",
                hint="Use the 'schedule_id' that create_gradual_schedule returned.",
            )
        made = self._schedules[schedule_id]
        target = schedules.target_at(made["targets"], epoch)
        progress = target / made["final_sparsity"] if made["final_sparsity"] else 1.0
        layers = {name: share * progress for name, share in self.config.strategy.layer_specific_sparsity.items()}
        request = Request("gradual", strategies.gradual, target, layers, explicit=True, activity=activity)
        results = self._prune(model, request, dry_run, data_loader, optimizer)
        sparsity = self.share_gone(model, results["neurons_after"])
        return results | {"schedule_id": schedule_id, "epoch": epoch, "target_sparsity": target, "sparsity": sparsity}

    # --- looking, without removing anything

    def see(self, model: nn.Module, data_loader: Iterable[Any] | None = None, example: Any = None) -> NeuronMap:
        """The neurons of a model as this engine first saw it, which all shares are relative to; now, if never before.

        `example` are a call's inputs for a model whose neurons were not looked for yet: a tensor, a tuple, or a mapping
        of keyword arguments. Raises `DiscoveryError`.
        """
        model = admitted_for_change(model)
        if model not in self._first:
            if example is not None and last_discovered(model) is None:
                by_name = isinstance(example, Mapping)
                discover(model, () if by_name else example, dict(example) if by_name else None)
            self._first[model] = current_map(model, data_loader)
        return self._first[model]

    def share_gone(self, model: nn.Module, neurons_after: int) -> float:
        """The share that is gone of all neurons that the layers which the configuration lets go had at first."""
        first, options = self.see(model), self.config.strategy
        named = {first[name].name for name in options.layer_specific_sparsity}
        touched = Scope.of(first, first, options).layers | named
        return (first.neurons - neurons_after) / sum(first[name].size for name in touched)

    def plan_by_strategy(
        self,
        model: nn.Module,
        strategy: str | None = None,
        sparsity_ratio: float | None = None,
        *,
        activity: ActivityStats | None = None,
        data_loader: Iterable[Any] | None = None,
    ) -> PruningPlan:
        """What `prune_by_strategy` would remove; or as much of that as the limits allow, where they do not allow it."""
        neurons = current_map(model, data_loader)
        request = self._request(strategy or self.config.strategy.default_strategy, sparsity_ratio, activity=activity)
        request = replace(request, explicit=False, judge=judge_of(model, neurons, data_loader))
        return decide(model, neurons, self.see(model), self.config, request).plan

    # --- measuring, checking, going back

    def compute_metrics(self, pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
        """Both models in numbers; see `pruner.metrics.compute_metrics`."""
        return metrics.compute_metrics(pruned_model, original_model)

    def validate_pruning(self, pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
        """Whether the pruned model is sound; see `pruner.validation.validate_pruning`."""
        return validation.validate_pruning(pruned_model, original_model)

    def backup(self, model: nn.Module, optimizer: Companions | None = None) -> None:
        """Copy the model's state, and the optimizer's, for `restore`; takes the place of an earlier copy."""
        self._backups[unwrapped(model)] = Backup(model, optimizer)

    def restore(self, model: nn.Module) -> None:
        """Put the model back into the state it was backed up in, bit for bit. Raises `PlanError` without a backup."""
        kept = self._backups.get(unwrapped(model))
        if kept is None:
            raise PlanError("This model was not backed up.", hint="Call backup(model) before pruning it.")
        kept.restore(model)

    # --- configuration

    def update_config(self, **changes: Any) -> None:
        """Change options, as `PruningConfig.update`: `update_config(**{"strategy.target_sparsity": 0.6})`."""
        self.config = self.config.update(**changes)

    def set_conservative_mode(self) -> None:
        """Take thresholds and strategy from `create_conservative_config`; logging and validation stay as they are."""
        self._take_over(create_conservative_config())

    def set_aggressive_mode(self) -> None:
        """Take thresholds and strategy from `create_aggressive_config`; logging and validation stay as they are."""
        self._take_over(create_aggressive_config())

    def save_config(self, path: str | Path) -> None:
        """Write the configuration as YAML or JSON, by the suffix."""
        self.config.save(path)

    def load_config(self, path: str | Path) -> None:
        """Replace the configuration by that of a YAML or JSON file."""
        self.config = PruningConfig.from_file(path)

    def _take_over(self, preset: PruningConfig) -> None:
        self.config = self.config.update(thresholds=preset.thresholds, strategy=preset.strategy)

    # --- the one path that all prune_* methods take

    def _request(
        self,
        name: str,
        sparsity_ratio: float | None,
        *,
        activity: ActivityStats | None = None,
        recommendations: Recommendations | None = None,
    ) -> Request:
        options = self.config.strategy
        return Request(
            name,
            strategies.find(name),
            options.target_sparsity if sparsity_ratio is None else sparsity_ratio,
            options.layer_specific_sparsity,
            explicit=sparsity_ratio is not None,
            activity=activity,
            recommendations=recommendations,
        )

    def _prune(
        self,
        model: nn.Module,
        request: Request,
        dry_run: bool,
        data_loader: Iterable[Any] | None,
        optimizer: Companions | None,
        store: Callable[[nn.Module], Path] | None = None,
    ) -> Results:
        if not isinstance(model, nn.Module):
            raise PlanError(f"The model is of type {type(model).__name__}.", hint="Give a torch.nn.Module.")
        log.configure(self.config.logging, self.output_dir)
        model = admitted_for_change(model)
        if self.config.validation.validate_inputs:
            check_weights(model)
        neurons = current_map(model, data_loader)
        first = self.see(model)
        request = replace(request, judge=judge_of(model, neurons, data_loader))
        decision = decide(model, neurons, first, self.config, request)
        repair = repair_for(model, neurons, decision.plan, data_loader, self.config)
        new = repair.tensors if repair else None
        how = Execution(self.config, dry_run, data_loader, optimizer, store, new)
        return carry_out(model, neurons, decision, how) | {"repair": repair.to_json() if repair else None}


def _check_layers(layer_sparsity: object) -> None:
    if not isinstance(layer_sparsity, Mapping) or not layer_sparsity:
        raise PlanError(
            f"layer_sparsity = {layer_sparsity!r} names no layers.", hint='Write {"conv1": 0.25, "fc1": 0.5}.'
        )
