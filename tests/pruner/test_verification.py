import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.pruner.before_and_after import everything
from tests.pruner.small_models import CASES, ResidualCNN, case
from torch import nn

from pruner.apply import prune_
from pruner.captured import Reference, capture
from pruner.checkpoint import save_pruned
from pruner.masking import masked
from pruner.plan import PruningPlan
from pruner.verification import Check, VerificationReport, verify
from tracker.discover import discover, forget
from tracker.errors import DataError, PlanError, VerificationError
from tracker.neuron_map import NeuronMap

FOUR = ("structure", "forward pass", "neuron counts", "parameter counts")
PROOF = "sliced equals masked"


def half(neurons: NeuronMap) -> PruningPlan:
    return PruningPlan({group.name: range(group.size // 2) for group in neurons if group.exact})


def prepared(name: str = "cnn", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Reference, Any]:
    """A pruned model, what was captured of it before, and its inputs."""
    model, x = case(name, dtype)
    neurons = discover(model, x)
    reference = capture(model, half(neurons), neurons, [x, x.flip(0)])
    prune_(model, half(neurons), neurons)
    return model, reference, x


def failed(report: VerificationReport) -> set[str]:
    return {check.name for check in report.failures}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_a_model_pruned_as_planned_passes_every_check(name, dtype, tmp_path):
    model, reference, _ = prepared(name, dtype)
    save_pruned(model, tmp_path)
    before = everything(model)
    report = verify(model, reference, checkpoint=tmp_path)
    assert [check.name for check in report.checks] == [*FOUR, PROOF, "save and load"]
    assert str(report) == "6/6 tests passed"
    assert report.summary == {"passed": 6, "total": 6, "overall_success": True}
    assert everything(model) == before
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_both_models_at_hand_need_no_capture():
    original, x = case("cnn")
    pruned = copy.deepcopy(original)
    plan = half(discover(pruned, x))
    prune_(pruned, plan)
    before = everything(original)
    report = verify(pruned, original, plan, [(x, torch.zeros(3))])
    assert str(report) == "5/5 tests passed"
    assert everything(original) == before
    forget(original)
    assert str(verify(pruned, original, plan)) == "5/5 tests passed", "without data the example inputs serve"


def test_without_a_plan_only_what_can_be_told_is_checked_and_the_rest_is_named():
    original, x = case("cnn")
    pruned = copy.deepcopy(original)
    prune_(pruned, half(discover(pruned, x)))
    report = verify(pruned, original, data_loader=[x])
    assert [check.name for check in report.checks] == ["structure", "forward pass", "parameter counts"]
    assert report.summary["overall_success"]
    assert [line.partition(":")[0] for line in report.not_checked] == ["neuron counts", PROOF]
    assert failed(verify(original, pruned, data_loader=[x])) == {"structure", "parameter counts"}


def test_a_layer_that_is_not_exact_has_no_proof_and_the_report_says_so():
    model, x = case("transformer")
    neurons = discover(model, x)
    plan = PruningPlan({"attention.out": [0, 1]})
    reference = capture(model, plan, neurons, [x])
    prune_(model, plan, neurons)
    report = verify(model, reference)
    assert str(report) == "4/4 tests passed"
    assert report.not_checked == (
        "sliced equals masked: layer 'embed' is not exact (its neurons are normalised together)",
    )


def test_real_data_are_used_and_only_as_many_batches_as_asked_for():
    model, x = case("cnn")
    neurons = discover(model, x)
    drawn = []

    def loader() -> Any:
        for index in range(9):
            drawn.append(index)
            yield x + index

    assert len(capture(model, half(neurons), neurons, loader()).batches) == 4
    assert drawn == [0, 1, 2, 3]
    assert len(capture(model, half(neurons), neurons, loader(), batches=2).batches) == 2
    assert len(capture(model, half(neurons), neurons, loader(), batches=None).batches) == 9


def test_dictionaries_are_batches_too():
    model, x = case("transformer")
    neurons = discover(model, x)
    reference = capture(model, half(neurons), neurons, [{"ids": x, "labels": x}])
    prune_(model, half(neurons), neurons)
    assert str(verify(model, reference)) == "5/5 tests passed"


def test_removing_nothing_is_verified_too():
    model, x = case("cnn")
    discover(model, x)
    assert str(verify(copy.deepcopy(model), model, PruningPlan({}), [x])) == "5/5 tests passed"


def test_a_weight_of_another_shape_fails():
    model, reference, _ = prepared()
    model.fc2 = nn.Linear(5, 4).double()
    report = verify(model, reference)
    assert failed(report) == {"structure", "forward pass", "parameter counts", PROOF}
    detail = {check.name: check.detail for check in report.checks}
    assert detail["structure"].startswith("'fc2.bias' is (4,) where (3,) was expected")
    assert detail["forward pass"] == (
        "batch 0: output is [3, 4] where the dense model gives [3, 3]; "
        "batch 1: output is [3, 4] where the dense model gives [3, 3]."
    )


def test_a_tensor_more_or_less_fails():
    model, reference, _ = prepared()
    model.register_buffer("extra", torch.zeros(1))
    model.fc2.bias = None
    structure = verify(model, reference).checks[0]
    assert (
        structure.detail == "'extra' is (1,) where nothing was expected; 'fc2.bias' is missing where (3,) was expected."
    )


def test_a_stale_integer_fails():
    model, reference, _ = prepared("transformer")
    model.attention.num_heads = 3
    report = verify(model, reference)
    assert "structure" in failed(report)
    assert "'attention.num_heads' is 3 where 2 was expected" in report.checks[0].detail


def test_a_neuron_too_many_fails():
    model, reference, _ = prepared()
    with torch.no_grad():
        model.fc1.weight.data, model.fc1.bias.data = model.fc1.weight[1:], model.fc1.bias[1:]
        model.fc2.weight.data = model.fc2.weight[:, 1:]
    report = verify(model, reference)
    assert failed(report) == {"structure", "neuron counts", "parameter counts", PROOF}
    counts = {check.name: check for check in report.checks}["neuron counts"]
    assert "'fc1.weight' lost 6 of dimension 0, not 5" in counts.detail
    assert (counts.measured["expected"], counts.measured["found"]) == (12, 11)


def test_another_neuron_than_planned_fails_only_the_proof():
    model, x = case("cnn")
    twin, _ = case("cnn")
    neurons = discover(model, x)
    reference = capture(model, PruningPlan({"fc1": [0, 1]}), neurons, [x])
    prune_(twin, PruningPlan({"fc1": [0, 2]}), discover(twin, x))
    report = verify(twin, reference)
    assert failed(report) == {PROOF}
    assert str(report) == "4/5 tests passed"
    assert not report.summary["overall_success"]
    assert report.failures[0].measured["error"] > report.failures[0].measured["tolerance"]


def test_answers_that_are_not_finite_fail():
    model, reference, _ = prepared()
    with torch.no_grad():
        model.fc2.bias[0] = torch.nan
    report = verify(model, reference)
    assert failed(report) == {"forward pass", PROOF}
    assert "batch 0: output holds NaN or Inf" in report.checks[1].detail


def test_a_model_that_raises_is_a_finding_and_no_error():
    model, reference, _ = prepared()
    model.fc1.forward = lambda x: 1 / 0
    report = verify(model, reference)
    assert failed(report) == {"forward pass", PROOF}
    assert report.checks[1].detail == "It fails with ZeroDivisionError: division by zero"


def test_a_checkpoint_of_other_weights_or_none_fails(tmp_path):
    model, reference, _ = prepared()
    save_pruned(model, tmp_path)
    with torch.no_grad():
        model.fc2.bias[0] += 1
    report = verify(model, reference, checkpoint=tmp_path)
    assert {check.detail for check in report.failures if check.name == "save and load"} == {
        "'fc2.bias' has other values; the loaded model gives other answers."
    }
    report = verify(model, reference, checkpoint=tmp_path / "absent")
    assert "save and load" in failed(report)
    assert "no pruned model in" in report.checks[-1].detail


def test_bad_arguments_are_errors():
    model, x = case("cnn")
    neurons = discover(model, x)
    with pytest.raises(PlanError):
        verify(model, model, PruningPlan({"nowhere": [0]}), [x])
    with pytest.raises(DataError, match="empty"):
        capture(model, half(neurons), neurons, [])
    with pytest.raises(DataError, match="Batch 1"):
        capture(model, half(neurons), neurons, [x, x * torch.nan])
    with torch.no_grad():
        model.fc2.bias[0] = torch.inf
    with pytest.raises(DataError, match=r"fc2\.bias"):
        capture(model, half(neurons), neurons, [x])


def test_a_mask_that_no_batch_reaches_is_an_error():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, use: bool = True) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x))) if use else x

    model, x = Gate(), torch.randn(2, 3)
    neurons = discover(model, x)
    with pytest.raises(VerificationError, match="'down' did not run"):
        capture(model, PruningPlan({"up": [0]}), neurons, [{"x": x, "use": False}])


def test_a_reference_holds_no_weights_of_the_dense_model():
    _, reference, _ = prepared()
    assert all(tensor.is_meta for tensor in reference.skeleton.state_dict().values())
    assert isinstance(reference.skeleton, ResidualCNN)


def test_no_checks_are_no_success():
    assert VerificationReport(()).summary == {"passed": 0, "total": 0, "overall_success": False}
    check = Check("structure", True, "", {})
    assert VerificationReport((check,)).summary["overall_success"]
    assert not VerificationReport((check, replace(check, passed=False))).summary["overall_success"]


# --- layers that are not exact


def test_exact_layers_are_proven_beside_one_that_is_not_and_the_difference_is_measured():
    model, x = case("transformer")
    dense = copy.deepcopy(model)
    neurons = discover(model, x)
    exact = half(neurons)
    plan = PruningPlan({**exact.remove, "embed": [0, 3]})
    batches = [(x, torch.full_like(x, 3)), (x.flip(0), torch.full_like(x, 7))]
    before = everything(model)
    reference = capture(model, plan, neurons, batches)
    assert everything(model) == before
    prune_(model, plan, neurons)
    report = verify(model, reference)
    assert [check.name for check in report.checks] == [*FOUR, PROOF]
    assert str(report) == "5/5 tests passed"
    assert report.checks[-1].measured["error"] < 1e-12
    assert report.not_checked == (f"{PROOF}: layer 'embed' is not exact (its neurons are normalised together)",)

    measured = report.to_json()["measured"]
    assert measured["layers"] == {"embed": "its neurons are normalised together"}
    assert measured["batches"] == 2
    with torch.no_grad():
        then, now = (torch.cat([m(x)["logits"], m(x.flip(0))["logits"]]) for m in (dense, model))
        with masked(dense, exact, neurons):
            zeroed = torch.cat([dense(x)["logits"], dense(x.flip(0))["logits"]])
    assert measured["relative_error"] == pytest.approx(float((now - then).norm() / then.norm()))
    assert measured["exact_alone"]["relative_error"] == pytest.approx(float((zeroed - then).norm() / then.norm()))
    assert measured["top1_agreement"] == (now.argmax(-1) == then.argmax(-1)).double().mean().item()
    targets = torch.cat([target for _, target in batches])
    for answer, name in ((then, "accuracy_before"), (now, "accuracy_after")):
        assert measured[name] == (answer.argmax(-1) == targets).double().mean().item()


def test_a_mistake_in_an_exact_layer_is_found_beside_one_that_is_not():
    model, x = case("transformer")
    neurons = discover(model, x)
    plan = PruningPlan({**half(neurons).remove, "embed": [0, 3]})
    reference = capture(model, plan, neurons, [x])
    prune_(model, plan, neurons)
    name = next(group.producers[0].parameter for group in neurons if group.kind == "mlp")
    with torch.no_grad():
        model.get_parameter(name)[0] += 1
    assert failed(verify(model, reference)) == {PROOF}


def test_where_every_layer_is_exact_nothing_is_measured_instead():
    model, reference, _ = prepared()
    assert verify(model, reference).measured is None


def test_a_model_that_fails_has_nothing_measured():
    model, x = case("transformer")
    neurons = discover(model, x)
    plan = PruningPlan({"embed": [0, 3]})
    reference = capture(model, plan, neurons, [x])
    prune_(model, plan, neurons)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    report = verify(model, reference)
    assert failed(report) == {"forward pass"}
    assert report.measured is None
