"""Looking at a model leaves no trace in it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tracker import discover
from tracker.errors import DiscoveryError
from tracker.fake import left_as_found, unfused


class Keeper(nn.Module):
    """Keeps things between calls, as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)
        self.calls, self.sizes = 0, {"width": 8}
        self.seen: list[Any] = []
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = self.fc1(x)
        self.sizes["batch"] = x.shape[0]
        self.seen.append(x)
        self.register_buffer("extra", x.mean())
        if self.fail:
            raise ValueError("as it happens")
        result: Tensor = self.fc2(self.drop(self.norm(self.cache)))
        return result


def state(model: nn.Module) -> dict[str, Any]:
    return {
        name: (dict(vars(module)), list(module._buffers), list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
def test_discovery_leaves_everything_as_it_was(fails: bool) -> None:
    model = Keeper().train()
    model.norm.eval()
    model.fail = fails
    model.fc1.weight.grad = torch.ones_like(model.fc1.weight)
    model.fc1.register_forward_hook(lambda *_: None)
    weights, before, random = copy.deepcopy(model.state_dict()), state(model), torch.random.get_rng_state()
    if fails:
        with pytest.raises(DiscoveryError, match="as it happens"):
            discover(model, torch.randn(4, 6))
    else:
        discover(model, torch.randn(4, 6, generator=torch.Generator()))
        assert torch.equal(random, torch.random.get_rng_state())
    assert state(model) == before
    assert model.training
    assert not model.norm.training
    assert (model.calls, model.sizes, model.seen) == (0, {"width": 8}, [])
    assert not hasattr(model, "cache")
    assert not hasattr(model, "extra")
    assert all(type(module.in_features) is int for module in (model.fc1, model.fc2))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_containers_get_their_contents_back_in_place() -> None:
    model = Keeper()
    sizes, seen = model.sizes, model.seen
    with left_as_found(model):
        model.sizes.clear()
        model.seen.append(1)
        model.sizes = {"other": 1}
        del model.fc2
    assert model.sizes is sizes == {"width": 8}
    assert model.seen is seen == []
    assert isinstance(model.fc2, nn.Linear)


def test_fused_kernels_come_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with unfused():
        assert not torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyboardInterrupt), unfused():
        raise KeyboardInterrupt
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


def test_a_model_that_looks_at_values_is_discovered_on_its_weights() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.fc1(x))
            if hidden.sum().item() > 0:
                hidden = hidden * 2
            result: Tensor = self.fc2(hidden)
            return result

    assert [group.name for group in discover(Looks(), torch.randn(2, 6))] == ["fc1"]
    with torch.device("meta"):
        model = Looks()
    with pytest.raises(DiscoveryError):
        discover(model, torch.empty(2, 6, device="meta"))
