"""Validation finds every way in which a pruned model can be wrong by itself."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import nn

from pruner.apply import prune_
from pruner.plan import PruningPlan
from pruner.validation import PruningValidator, validate_pruning
from tracker.discover import discover


def pair() -> tuple[SmallCNN, SmallCNN]:
    original = small_cnn.model()
    pruned = deepcopy(original)
    discover(pruned, small_cnn.images())
    prune_(pruned, PruningPlan({"conv1": [0, 3], "fc1": range(64)}))
    return pruned, original


def test_a_pruned_model_is_valid() -> None:
    pruned, original = pair()
    result = validate_pruning(pruned, original)
    assert result["is_valid"]
    assert (result["warnings"], result["errors"]) == ([], [])
    assert result["structure"]["valid"]
    assert result["structure"]["changed"]["conv1.weight"] == {"original": [10, 1, 3, 3], "pruned": [8, 1, 3, 3]}
    assert "fc2.bias" not in result["structure"]["changed"]
    assert result["forward_pass"]["valid"]
    assert result["forward_pass"]["outputs"] == {"output": [4, 10]}
    counts = result["parameter_counts"]
    assert counts["valid"]
    assert counts["original"] - counts["pruned"] == counts["removed"] > 0
    assert counts["reduction"] == pytest.approx(counts["removed"] / counts["original"])


def test_the_class_says_the_same() -> None:
    pruned, original = pair()
    assert PruningValidator().validate(pruned, original) == validate_pruning(pruned, original)


def test_inputs_are_found_without_discovery() -> None:
    assert validate_pruning(small_cnn.model(), small_cnn.model())["forward_pass"]["valid"]


def test_two_equal_models_are_worth_a_warning() -> None:
    result = validate_pruning(small_cnn.model(), small_cnn.model().train())
    assert result["is_valid"]
    assert any("nothing was removed" in warning for warning in result["warnings"])
    assert any("training mode" in warning for warning in result["warnings"])


def _nan(model: SmallCNN) -> None:
    model.fc2.bias.data[0] = torch.nan


def _mismatch(model: SmallCNN) -> None:
    model.fc1 = nn.Linear(7, 64)


def _stale(model: SmallCNN) -> None:
    model.conv1.out_channels = 99


def _grown(model: SmallCNN) -> None:
    model.fc1, model.fc2 = nn.Linear(256, 300), nn.Linear(300, 10)


def _fewer_classes(model: SmallCNN) -> None:
    model.fc2 = nn.Linear(64, 9)


def _empty(model: SmallCNN) -> None:
    model.fc1, model.fc2 = nn.Linear(256, 0), nn.Linear(0, 10)


def _extra(model: SmallCNN) -> None:
    model.more = nn.Linear(2, 2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("spoil", "part", "words"),
    [
        (_nan, "forward_pass", "NaN or Inf"),
        (_mismatch, "forward_pass", "The forward pass fails"),
        (_stale, "structure", "'conv1' says out_channels = 99; its weight says 8"),
        (_grown, "structure", "'fc1.weight' has the shape [300, 256], which does not fit"),
        (_fewer_classes, "forward_pass", "shape [4, 10] in the original"),
        (_empty, "structure", "'fc1.weight' is empty"),
        (_extra, "structure", "'more.weight' is in only one"),
    ],
)
def test_what_is_wrong_is_named(spoil: Callable[[SmallCNN], None], part: str, words: str) -> None:
    pruned, original = pair()
    spoil(pruned)
    result = validate_pruning(pruned, original)
    assert not result["is_valid"]
    assert not result[part]["valid"]
    assert any(words in issue for issue in result[part]["issues"]), result[part]["issues"]
    assert set(result[part]["issues"]) <= set(result["errors"])


def test_more_parameters_than_before_are_an_error() -> None:
    pruned, original = pair()
    result = validate_pruning(original, pruned)
    assert not result["parameter_counts"]["valid"]
    assert not result["is_valid"]


def test_models_are_left_as_they_were() -> None:
    pruned, original = pair()
    pruned.train()
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    state = torch.get_rng_state()
    validate_pruning(pruned, original)
    assert pruned.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())
