"""A tracker and a pruner around one model, for use inside its training loop."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from pruner.companions import Companions
from pruner.config import PruningConfig
from pruner.current_map import current_map
from pruner.results import WorkflowResults
from pruner.workflow import IntegratedTrackingPruningWorkflow
from pruner.workflow_run import Evaluate
from tracker.engine import NeuronEngine
from tracker.history import EpochRecord
from tracker.neuron_tracker import NeuronTracker
from tracker.recommendations import Recommendations


class IntegratedSystem:
    """Watch a model while it trains, prune it when you like, and go on training with the same optimizer.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [(torch.randn(16, 4), torch.randint(2, (16,))) for _ in range(3)]
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> system = IntegratedSystem(model, batches, config=PruningConfig(logging={"log_to_console": False}),
    ...                           optimizer=optimizer, output_dir=folder)
    >>> for epoch in range(3):
    ...     with system.tracking():
    ...         for inputs, targets in batches:
    ...             loss = nn.functional.cross_entropy(model(inputs), targets)
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    ...     record = system.log_epoch(epoch, loss=loss.item())
    ...     if epoch == 1:
    ...         results = system.prune()
    >>> results["neurons_pruned"], model[0].out_features
    (2, 6)

    Args:
        model: the model that is trained.
        data_loader: real batches, by which its neurons are found and every removal is verified.
        model_name: what files are called after; by default the model's class.
        config: the pruner's configuration.
        optimizer: its state (momentum, moments) is cut along with the model.
        output_dir: where recommendations and reports go.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        model_name: str | None = None,
        config: PruningConfig | None = None,
        *,
        optimizer: Companions | None = None,
        output_dir: str | Path = "outputs",
    ) -> None:
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.tracker = NeuronEngine(output_dir)
        self.workflow = IntegratedTrackingPruningWorkflow(config, output_dir, tracker=self.tracker)
        self.pruner = self.workflow.pruner
        self.model_name = self.tracker.track_model(model, model_name).name

    def tracking(self) -> AbstractContextManager[NeuronTracker]:
        """A block in which every training step adds to what is known of the neurons."""
        return self.tracker.tracking(self.model, neurons=current_map(self.model, self.data_loader))

    def log_epoch(self, epoch: int, loss: float | None = None, accuracy: float | None = None) -> EpochRecord:
        """Close an epoch: see `NeuronEngine.log_epoch`, which also writes its recommendations."""
        return self.tracker.log_epoch(epoch, loss, accuracy)

    def recommend(self) -> Recommendations:
        """What the activity seen last speaks for, by the thresholds of the configuration."""
        threshold = self.pruner.config.thresholds.firing_frequency_threshold
        return self.tracker.recommend(firing_frequency_threshold=threshold)

    def prune(self, dry_run: bool = False) -> dict[str, Any]:
        """Remove what is recommended now, up to the target of the configuration, and verify it.

        Model and optimizer are changed in place, or not at all. Results and errors are those of
        `PruningEngine.prune_by_recommendations`.
        """
        results = self.pruner.prune_by_recommendations(
            self.model, self.recommend(), dry_run, data_loader=self.data_loader, optimizer=self.optimizer
        )
        if not dry_run:
            self.tracker.removed({name: layer["removed"] for name, layer in results["layers"].items()})
        return results

    def run(self, *, evaluate: Evaluate | None = None) -> WorkflowResults:
        """The complete workflow on the data, with files and a report that tells the training's history.

        Results and errors are those of `IntegratedTrackingPruningWorkflow.run_complete_workflow`.
        """
        return self.workflow.run_complete_workflow(
            self.model, self.data_loader, self.model_name, evaluate=evaluate, optimizer=self.optimizer
        )
