from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.pruner.before_and_after import everything
from tests.pruner.small_models import case
from torch import nn

from pruner.masking import masked, reads_after, silenced
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import PlanError, UnknownLayerError, VerificationError
from tracker.neuron_map import NeuronGroup, NeuronMap, Positions, Read, Site


def mlp() -> tuple[nn.Sequential, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(6, 3, dtype=torch.float64)


def test_the_consumers_read_zero_and_nothing_else_changes():
    model, x = mlp()
    discover(model, x)
    read = []
    model[2].register_forward_hook(lambda _, args, __: read.append(args[0].detach().clone()))
    before = everything(model)
    produced = torch.tanh(model[0](x))
    with masked(model, PruningPlan({"0": [1, 3]})):
        model(x)
    assert torch.equal(read[0][:, [1, 3]], torch.zeros(6, 2, dtype=torch.float64))
    assert torch.equal(read[0][:, [0, 2, 4]], produced[:, [0, 2, 4]])
    after = everything(model)
    assert after == before


def test_masking_is_what_zero_columns_of_the_consumer_would_do():
    model, x = mlp()
    discover(model, x)
    with masked(model, PruningPlan({"0": [1], "2": [0, 3]})), torch.no_grad():
        found = model(x)
    with torch.no_grad():
        model[2].weight[:, 1] = 0
        model[4].weight[:, [0, 3]] = 0
        assert torch.equal(model(x), found)


def test_infinite_activations_are_masked_too():
    model, x = mlp()
    discover(model, x)
    with torch.no_grad():
        model[0].bias[1] = torch.nan
    with masked(model, PruningPlan({"0": [1]})):
        assert torch.isfinite(model(x)).all()


def test_the_mask_comes_off_also_after_an_error():
    model, x = mlp()
    discover(model, x)
    expected = model(x)

    def fail() -> None:
        with masked(model, PruningPlan({"0": [1]})):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(model(x), expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_mask_under_which_nothing_ran_proves_nothing():
    model, x = mlp()
    discover(model, x)

    def idle() -> None:
        with masked(model, PruningPlan({"0": [1]})):
            pass

    with pytest.raises(VerificationError, match="'2' did not run"):
        idle()


def test_a_consumer_that_is_skipped_is_named():
    model, x = mlp()
    neurons = discover(model, x)

    def half() -> None:
        with masked(model, PruningPlan({"0": [1], "2": [0]}), neurons):
            model[2](torch.tanh(model[0](x)))

    with pytest.raises(VerificationError, match="'4' did not run"):
        half()


def test_a_group_whose_consumer_is_not_known_to_read_is_refused():
    model, x = case("cnn")
    neurons = discover(model, x)
    stem = neurons["stem"]
    partial = replace(stem, reads=tuple(read for read in stem.reads if read.module != "fc1"))
    blind = replace(neurons, groups=tuple(partial if g.name == "stem" else g for g in neurons))
    with (
        pytest.raises(VerificationError, match=r"'stem' cannot be masked: .*'fc1.weight'"),
        masked(model, PruningPlan({"stem": [0]}), blind),
    ):
        model(x)


def test_nothing_to_mask_is_no_error():
    model, x = mlp()
    discover(model, x)
    with masked(model, PruningPlan({})):
        model(x)


def test_a_plan_that_does_not_fit_is_refused_at_once():
    model, x = mlp()
    discover(model, x)
    for remove, error in (({"nowhere": [0]}, UnknownLayerError), ({"0": [9]}, PlanError)):
        with pytest.raises(error), masked(model, PruningPlan(remove)):
            pass


def test_a_shared_consumer_is_masked_every_time_it_runs():
    model, x = case("transformer")
    neurons = discover(model, x)
    seen = []
    model.first.down.register_forward_hook(lambda _, args, __: seen.append(args[0][..., 2].abs().max().item()))
    with masked(model, PruningPlan({"first.up": [2]}), neurons):
        model(x)
    assert seen == [0.0, 0.0]


def test_jitter_moves_what_is_read_by_its_own_share_and_always_alike():
    model, x = mlp()
    neurons = discover(model, x)
    removed = PruningPlan({"0": [1]}).resolve(neurons)
    read = []
    model[2].register_forward_hook(lambda _, args, __: read.append(args[0].detach()))
    for jitter in (0.0, 0.25, 0.25):
        with silenced(model, neurons, removed, jitter=jitter):
            model(x)
    plain, moved, again = (tensor[:, [0, 2, 3, 4]] for tensor in read)
    torch.testing.assert_close((moved / plain - 1).abs(), torch.full_like(plain, 0.25))
    assert torch.equal(moved, again)
    assert torch.equal(read[1][:, 1], torch.zeros(6, dtype=torch.float64))


def test_reads_move_up_where_neurons_before_them_are_gone():
    first, second = (np.arange(n, n + 4, dtype=np.int64)[:, None] for n in (0, 4))  # side by side in one input

    def group(name: str, positions: Positions, reader: str = "c") -> NeuronGroup:
        site = Site(f"{reader}.weight", 1)
        read = Read(reader, site.parameter, -1, positions)
        return NeuronGroup(name, 4, "mlp", True, (Site(f"{name}.weight", 0),), (site,), {site: positions}, (read,))

    neurons = NeuronMap((group("a", first), group("b", second), group("d", second, "e")))
    after = reads_after(neurons, {"a": torch.tensor([0, 2])})
    assert after["b"].reads[0].positions.tolist() == [[2], [3], [4], [5]]
    assert after["d"].reads[0].positions.tolist() == second.tolist()  # another reader
    assert reads_after(neurons, {"b": torch.tensor([1])})["a"].reads[0].positions.tolist() == first.tolist()
