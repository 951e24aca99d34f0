"""A pruning that is given new values for the weights that stay: proven, recorded, verified again from files, undone."""

from pathlib import Path

import pytest
import torch
from tests.pruner import small_cnn
from torch import Tensor, nn

from pruner.apply import check, prune_
from pruner.captured import capture
from pruner.checkpoint import load_pruned, save_pruned
from pruner.lineage import pruning_history
from pruner.masking import silenced
from pruner.plan import PruningPlan
from pruner.repair import repaired_in
from pruner.verification import verify
from tracker.discover import discover
from tracker.errors import DataError, PlanError

PLAN = PruningPlan({"conv1": [0, 3], "conv2": [5], "fc1": list(range(40))})


def dense() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn.model().eval()


def repair(model: nn.Module) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    named = model.state_dict()
    names = ("conv2.weight", "fc1.weight", "fc2.bias", "bn1.running_mean")
    return {name: named[name] + 0.1 * torch.randn(named[name].shape, generator=random) for name in names}


def test_the_pruned_model_is_the_repaired_one_with_its_neurons_silenced() -> None:
    model, twin = dense(), dense()
    neurons = discover(model, small_cnn.images())
    new = repair(model)
    result = prune_(model, PLAN, neurons, repair=new)
    assert result.proof is not None
    assert result.proof.holds
    assert result.repaired == tuple(sorted(new))
    twin.load_state_dict(twin.state_dict() | new)
    with silenced(twin, discover(twin, small_cnn.images()), PLAN.resolve(neurons)):
        torch.testing.assert_close(model(small_cnn.images()), twin(small_cnn.images()))
    assert pruning_history(model)[0]["repaired"] == sorted(new)


def test_a_dry_run_leaves_no_trace_of_it() -> None:
    model = dense()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check(model, PLAN, discover(model, small_cnn.images()), repair=repair(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"fc3.weight": torch.zeros(1)}, PlanError, "fc3.weight"),
        ({"fc2.bias": torch.zeros(3)}, PlanError, "shape"),
        ({"fc2.bias": torch.full((10,), torch.nan)}, DataError, "NaN"),
    ],
)
def test_a_repair_that_does_not_fit_is_refused_and_nothing_lost(
    wrong: dict[str, Tensor], error: type[Exception], says: str
) -> None:
    model = dense()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=says):
        prune_(model, PLAN, discover(model, small_cnn.images()), repair=wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_is_verified_with_the_original_alone_also_from_files(tmp_path: Path) -> None:
    original, model = dense(), dense()
    neurons = discover(model, small_cnn.images())
    prune_(model, PLAN, neurons, repair=repair(model))
    data = [small_cnn.images(seed=seed) for seed in (4, 5)]
    discover(original, small_cnn.images())
    assert not verify(model, original, PLAN, data).failures
    save_pruned(model, tmp_path / "pruned")
    loaded = load_pruned(tmp_path / "pruned", dense())
    report = verify(loaded, original, PLAN, data, checkpoint=tmp_path / "pruned")
    assert not report.failures
    assert any(one.name == "sliced equals masked" for one in report.checks)


def test_a_weight_that_was_changed_and_is_not_in_the_record_is_found() -> None:
    original, model = dense(), dense()
    neurons = discover(model, small_cnn.images())
    prune_(model, PLAN, neurons, repair=repair(model))
    with torch.no_grad():
        model.get_parameter("conv1.weight").mul_(1.5)
    discover(original, small_cnn.images())
    report = verify(model, original, PLAN, [small_cnn.images()])
    assert [failed.name for failed in report.failures] == ["sliced equals masked"]


def test_what_is_captured_before_is_the_repaired_model() -> None:
    model = dense()
    neurons = discover(model, small_cnn.images())
    new = repair(model)
    reference = capture(model, PLAN, neurons, [small_cnn.images()], repair=new)
    prune_(model, PLAN, neurons, repair=new)
    assert not verify(model, reference).failures


def test_the_repair_is_read_back_from_the_pruned_model() -> None:
    original, model = dense(), dense()
    neurons = discover(model, small_cnn.images())
    new, removed = repair(model), PLAN.resolve(neurons)
    prune_(model, PLAN, neurons, repair=new)
    found = repaired_in(model, original, neurons, removed, new)
    stays = torch.ones(small_cnn.CONV2, dtype=torch.bool)
    stays[5] = False
    assert torch.equal(found["conv2.weight"][stays][:, 1:3], new["conv2.weight"][stays][:, 1:3])
    assert torch.equal(found["conv2.weight"][5], original.get_parameter("conv2.weight")[5])
    assert torch.equal(found["fc2.bias"], new["fc2.bias"])
