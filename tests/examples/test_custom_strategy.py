"""A strategy added from outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.examples.entry_points import answer_with_installed

from examples import custom_strategy as example
from neuronscope import reference
from neuronscope.data_names import digits
from neuronscope.digits import DigitsCNN
from pruner import PruningEngine, create_default_config, strategies
from tracker import discover
from tracker.errors import ConfigError


@pytest.fixture
def registered() -> Iterator[None]:
    strategies.register("lottery")(example.lottery)
    yield
    strategies.unregister("lottery")


def test_it_is_found_by_name_and_obeys_every_limit(registered: None) -> None:
    model = DigitsCNN().eval()
    neurons = discover(model, torch.rand(4, 1, 8, 8))
    config = create_default_config().update(
        strategy={"default_strategy": "lottery", "target_sparsity": 0.5}, thresholds={"min_neurons_per_layer": 60}
    )
    results = PruningEngine(config=config).prune_by_strategy(model)
    assert results["strategy"] == "lottery"
    assert results["neurons_pruned"] == 512
    assert all(layer["after"] >= 60 for layer in results["layers"].values())
    assert results["verification"]["summary"]["overall_success"]
    chosen = results["layers"]["block3.conv2"]["removed"]
    assert chosen != list(range(len(chosen)))
    assert neurons.neurons == 1024


def test_chance_is_worse_than_magnitude(registered: None) -> None:
    found = example.accuracies(reference.load("digits-cnn").model, digits()[1], ["magnitude", "lottery"], 0.2)
    assert found["magnitude"] > found["lottery"] + 0.1


def test_without_it_there_is_no_such_strategy() -> None:
    with pytest.raises(ConfigError, match="lottery"):
        strategies.find("lottery")


def test_an_installed_package_offers_it(tmp_path: Path) -> None:
    code = """
        from pruner import strategies
        print("lottery" in strategies.names(), strategies.find("lottery").__module__)
    """
    assert answer_with_installed(example, tmp_path, code) == "True examples.custom_strategy"
