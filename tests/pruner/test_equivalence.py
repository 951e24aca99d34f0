import math

import pytest
import torch
from tests.pruner.small_models import case
from torch import Tensor, nn

from pruner import equivalence
from pruner.equivalence import Agreement, answers, batch_of, compare, difference, expect, rounding
from pruner.plan import PruningPlan
from tracker.batches import Batch
from tracker.discover import discover
from tracker.errors import DataError
from tracker.example_inputs import Call


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, -4.0], [1.0, -2.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
        ([1.0], [1.0, 2.0], math.inf),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([math.inf, 1.0], [1.0, 1.0], math.inf),
    ],
)
def test_the_difference_is_relative_to_the_largest_value(one, other, expected):
    assert difference(torch.tensor(one), torch.tensor(other)) == pytest.approx(expected)


def test_differences_of_complex_and_of_half_precision_tensors():
    assert difference(torch.tensor([3 + 4j]), torch.tensor([0 + 5j])) == pytest.approx(math.sqrt(10) / 5)
    big = torch.tensor([60000.0], dtype=torch.float16)
    assert difference(-big, big) == pytest.approx(2.0)


class Strange(nn.Module):
    """Returns what it was told to."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def test_every_floating_tensor_in_the_output_is_an_answer():
    output = {"logits": torch.ones(2), "more": (torch.zeros(1), [torch.ones(3)]), "ids": torch.tensor([1]), "n": 3}
    found = answers(Strange(output), Batch((torch.ones(1),)))
    assert set(found) == {"output['logits']", "output['more'][0]", "output['more'][1][0]"}


@pytest.mark.parametrize("output", [None, 3, torch.tensor([1]), object(), ()])
def test_an_output_without_floating_tensors_cannot_be_compared(output):
    with pytest.raises(DataError, match="no floating-point tensor"):
        answers(Strange(output), Batch((torch.ones(1),)))


def test_answers_come_from_evaluation_mode_and_a_fixed_seed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    batch = Batch((torch.randn(2, 4),))
    model.train()
    state = torch.get_rng_state()
    first, second = answers(model, batch), answers(model, batch)
    assert torch.equal(first["output"], second["output"])
    assert not first["output"].requires_grad
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_reduced_precision_is_off_while_answering_and_as_before_afterwards():
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    seen = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(place.fp32_precision))
    try:
        place.fp32_precision = "tf32"
        answers(model, Batch((torch.ones(1, 2),)))
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before
    assert seen == ["ieee"]


def test_a_call_becomes_a_batch_of_the_models_type_and_constants_become_noise():
    model = nn.Linear(2, 2).double()
    ids, real, zeros = torch.zeros(2, dtype=torch.long), torch.tensor([1.0, 2.0]), torch.zeros(2)
    batch = batch_of(Call((ids, real), {"x": zeros, "flag": True}), model)
    assert torch.equal(batch.args[0], ids)
    assert torch.equal(batch.args[1], real.double())
    assert batch.kwargs["x"].dtype == torch.float64
    assert len(batch.kwargs["x"].unique()) == 2
    assert batch.kwargs["flag"] is True
    assert torch.equal(batch.kwargs["x"], batch_of(Call((), {"x": zeros}), model).kwargs["x"])


def cancelling(left_over: float, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A sum of 50 hidden values in which, once neuron 0 is masked, almost everything cancels: that much is left."""
    model = nn.Sequential(nn.Linear(4, 50), nn.Sigmoid(), nn.Linear(50, 1, bias=False)).to(dtype)
    x = torch.ones(1, 4, dtype=dtype)
    with torch.no_grad():
        hidden = model[1](model[0](x))[0].double()
        model[2].weight.fill_(1.0)
        model[2].weight[0, 1] = (left_over - hidden[2:].sum()) / hidden[1]
    return model, x


def tolerance(left_over: float, dtype: torch.dtype) -> float:
    torch.manual_seed(0)
    model, x = cancelling(left_over, dtype)
    neurons = discover(model, x)
    expected = expect(model, neurons, PruningPlan({"0": [0]}).resolve(neurons), Batch((x,)))
    return expected.tolerances["output"]


def test_a_model_that_amplifies_rounding_gets_a_wider_tolerance():
    floor = rounding(torch.finfo(torch.float32).eps)
    assert tolerance(100.0, torch.float32) == floor
    assert tolerance(0.01, torch.float32) > 5 * floor


def test_summing_in_another_order_is_measured_on_the_device_and_widens_the_tolerance(monkeypatch):
    here = {terms: equivalence.reordered(torch.device("cpu"), torch.float32, terms) for terms in (64, 4096)}
    assert all(0.5 < ratio < 8 for ratio in here.values()), here  # a CPU adds up in many short sums
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 8)).eval()
    x = torch.randn(16, 8)
    neurons = discover(model, (x,))
    removed = {neurons.groups[0].name: torch.arange(100)}
    narrow = expect(model, neurons, removed, Batch((x,))).tolerances["output"]
    assert narrow == rounding(torch.finfo(torch.float32).eps)  # the floor: rounding is well below it here
    monkeypatch.setattr(equivalence, "reordered", lambda *_: 1000.0)  # a device where the order matters
    wide = expect(model, neurons, removed, Batch((x,))).tolerances["output"]
    assert narrow < wide < 0.01


def test_no_tolerance_lets_more_than_a_tenth_pass():
    assert tolerance(100.0, torch.bfloat16) < 0.1
    assert tolerance(0.01, torch.bfloat16) == 0.1


def test_the_worst_output_of_the_worst_batch_is_reported():
    model, x = case("transformer")
    neurons = discover(model, x)
    expected = [expect(model, neurons, {}, Batch((ids,))) for ids in (x, x.flip(0))]
    assert compare(model, expected) == Agreement("output['logits']", 0.0, rounding(torch.finfo(torch.float64).eps))
    with torch.no_grad():
        model.embed.weight[0] += 1e-6
    worst = compare(model, expected)
    assert not worst.holds
    assert worst.error > 1e-8


def test_an_output_that_is_gone_or_has_another_shape_never_agrees():
    model = Strange({"a": torch.ones(2), "b": torch.ones(2)})
    batch = Batch((torch.ones(1),))
    neurons = discover(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(1, 2))
    expected = expect(model, neurons, {}, batch)
    for output in ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2, 1)}):
        model.output = output
        worst = compare(model, [expected])
        assert worst.output == "output['b']"
        assert worst.error == math.inf
        assert not worst.holds


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_an_error_about_the_model_or_its_inputs(bad):
    model, x = case("cnn")
    neurons = discover(model, x)
    removed = PruningPlan({"fc1": [0]}).resolve(neurons)
    with pytest.raises(DataError, match="its weights do not"):
        expect(model, neurons, removed, Batch((torch.full_like(x, 1e308) * 10,)))
    with torch.no_grad():
        model.fc2.bias[0] = bad
    with pytest.raises(DataError, match=r"so does its weight 'fc2\.bias'"):
        expect(model, neurons, removed, Batch((x,)))
