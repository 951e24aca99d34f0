import doctest
from pathlib import Path

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import Tensor, nn

from pruner import integration, workflow_run
from pruner.config import PruningConfig
from pruner.integration import IntegratedSystem
from pruner.report_files import load_report

QUIET = PruningConfig(logging={"log_to_console": False})
BATCHES = [(small_cnn.images(8, seed), torch.arange(8) % 10) for seed in range(3)]


@pytest.fixture(autouse=True)
def _no_long_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner.metrics._SECONDS", 0.0)
    monkeypatch.setattr(workflow_run, "find_spec", lambda _: None)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """One epoch; the last loss."""
    model.train()
    for images, labels in BATCHES:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


def trained(tmp_path: Path) -> tuple[IntegratedSystem, SmallCNN, torch.optim.Optimizer]:
    """A system after two epochs of training."""
    model = small_cnn.model()
    optimizer = torch.optim.Adam(model.parameters())
    system = IntegratedSystem(model, BATCHES, "digits", QUIET, optimizer=optimizer, output_dir=tmp_path)
    for epoch in range(2):
        with system.tracking():
            loss = train(model, optimizer)
        system.log_epoch(epoch, loss=loss.item(), accuracy=0.1)
    return system, model, optimizer


def test_the_example_in_the_docstring(tmp_path: Path) -> None:
    globs = vars(integration) | {"folder": tmp_path}
    for test in doctest.DocTestFinder().find(integration.IntegratedSystem, globs=globs):
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0


def test_pruned_between_two_epochs_the_training_goes_on(tmp_path: Path) -> None:
    system, model, optimizer = trained(tmp_path)
    results = system.prune()

    assert results["neurons_pruned"] == 60
    assert results["verification"]["summary"]["overall_success"]
    with system.tracking():
        loss = train(model, optimizer)
    record = system.log_epoch(2, loss=loss.item())
    assert {name: layer.size for name, layer in record.layers.items()} == {
        "conv1": model.conv1.out_channels,
        "conv2": model.conv2.out_channels,
        "fc1": model.fc1.out_features,
    }
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        f"epoch_{epoch}_recommendations.json" for epoch in range(3)
    ]


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    system, model, _ = trained(tmp_path)
    results = system.prune(dry_run=True)

    assert (results["dry_run"], results["neurons_pruned"]) == (True, 60)
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (10, 64, 128)


def test_recommendations_follow_the_configuration(tmp_path: Path) -> None:
    system, _, _ = trained(tmp_path)
    few = len(system.recommend().prune)
    system.pruner.update_config(**{"thresholds.firing_frequency_threshold": 0.3})

    assert len(system.recommend().prune) > few


def test_the_whole_run_tells_the_training_and_cuts_the_optimizer(tmp_path: Path) -> None:
    system, model, optimizer = trained(tmp_path)
    results = system.run(evaluate=lambda _: {"accuracy": 0.9})

    assert results["pruning_results"]["neurons_pruned"] == 60
    assert results["run"]["model_name"] == "digits"
    assert [epoch.epoch for epoch in load_report(results["report"]["json"]).history] == [0, 1]
    train(model, optimizer)
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
