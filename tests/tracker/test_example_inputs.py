"""Where an example call comes from, and what is said when none works."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tracker import discover, example_call, forget, last_discovered, neurons_of
from tracker.errors import DiscoveryError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0, shout: bool = False) -> Tensor:
        result: Tensor = self.fc2(torch.relu(self.fc1(x))) * scale
        return -result if shout else result


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.left(a) * self.right(b)))
        return result


def test_a_tensor_a_tuple_and_keywords_are_the_same_call() -> None:
    a, b = torch.randn(2, 4), torch.randn(2, 5)
    positional = discover(TwoInputs(), (a, b))
    keywords = discover(TwoInputs(), (), {"a": a, "b": b})
    mixed = discover(TwoInputs(), a, {"b": b})
    assert [g.name for g in positional] == [g.name for g in keywords] == [g.name for g in mixed] == ["left"]


def test_keywords_may_hold_anything() -> None:
    assert len(discover(Net(), torch.randn(2, 6), {"scale": 0.5, "shout": True})) == 1


def test_a_model_that_takes_nothing() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.net = nn.Parameter(torch.randn(2, 6)), Net()

        def forward(self) -> Any:
            return {"answer": [self.net(self.start)]}

    found = discover(Constant(), ())
    assert [group.name for group in found if group.kind == "mlp"][-1] == "net.fc1"


def test_the_first_batch_of_a_loader() -> None:
    model = TwoInputs()
    batches = [(torch.randn(3, 4), torch.randn(3, 5), torch.zeros(3)), None]
    assert len(discover(model, data_loader=batches)) == 1
    call = example_call(model)
    assert call is not None
    assert [tuple(arg.shape) for arg in call.args] == [(3, 4), (3, 5)]


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(2)),
        nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 3)),
        nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2)),
    ],
    ids=["linear", "image", "signal", "tokens"],
)
def test_inputs_are_guessed_from_the_first_layers(model: nn.Module) -> None:
    if any(isinstance(module, nn.LazyLinear) for module in model.modules()):
        model(torch.zeros(2, 3, 28, 28))
    assert len(discover(model)) >= 1


def test_transformers_name_their_own_inputs() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20)
    model = transformers.GPT2LMHeadModel(config)
    assert {group.kind for group in discover(model)} == {"mlp", "attention", "residual"}
    call = example_call(model)
    assert call is not None
    assert call.kwargs["use_cache"] is False  # keys and values for the next call are not what a model answers


def test_a_guess_that_never_works_says_how_to_pass_inputs() -> None:
    with pytest.raises(DiscoveryError, match=r"No example inputs for TwoInputs .*discover\(model, example_inputs\)"):
        discover(TwoInputs())


def test_inputs_that_do_not_fit_are_told_apart_from_a_broken_model() -> None:
    with pytest.raises(DiscoveryError, match="Net fails on the example inputs: RuntimeError"):
        discover(Net(), torch.randn(2, 7))
    with pytest.raises(DiscoveryError, match="example_inputs is a mapping"):
        discover(Net(), {"x": torch.randn(2, 6)})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.ReLU(), "has no parameters"),
        (nn.Sequential(nn.LazyLinear(3)), "not initialised"),
        ("a name", r"A model is a torch.nn.Module, not str"),
    ],
)
def test_what_cannot_be_discovered_says_why(model: Any, said: str) -> None:
    with pytest.raises(DiscoveryError, match=said):
        discover(model, torch.randn(2, 3))


def test_weights_and_inputs_may_be_without_values() -> None:
    with torch.device("meta"):
        model = Net()
    found = discover(model, torch.empty(2, 6, device="meta"))
    assert [(group.name, group.size) for group in found] == [("fc1", 8)]
    assert found.fingerprint == discover(Net(), torch.randn(2, 6)).fingerprint
    assert next(model.parameters()).is_meta


def test_maps_are_remembered_for_the_very_model_and_its_structure() -> None:
    model = Net()
    found = discover(model, torch.randn(2, 6))
    assert last_discovered(model) is found is neurons_of(model)
    model.fc1 = nn.Linear(6, 9)
    model.fc2 = nn.Linear(9, 3)
    assert last_discovered(model) is None
    assert neurons_of(model)["fc1"].size == 9
    forget(model)
    assert example_call(model) is None
