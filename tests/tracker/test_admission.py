"""Which models are let in: what is inside of a wrapper, and a word for what is not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.testing._internal.two_tensor import TwoTensor

from tracker.activity import observe
from tracker.admission import admitted, admitted_for_change, unwrapped
from tracker.discover import discover, last_discovered
from tracker.errors import DiscoveryError


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def refusal(model: Any, admit: Callable[[Any], nn.Module] = admitted) -> str:
    with pytest.raises(DiscoveryError) as caught:
        admit(model)
    assert caught.value.hint, "an error must say what to do"
    return str(caught.value)


# Wrappers


def test_a_plain_model_is_itself() -> None:
    model = mlp()
    assert unwrapped(model) is model
    assert admitted(model) is model
    assert admitted_for_change(model) is model


def test_wrappers_are_looked_into_however_many_there_are() -> None:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    for wrapper in (nn.DataParallel(model), compiled, torch.compile(nn.DataParallel(model), backend="eager")):
        assert unwrapped(wrapper) is model
        assert admitted_for_change(wrapper) is model
    neurons = discover(nn.DataParallel(model), torch.zeros(2, 5))
    assert [group.name for group in neurons] == ["0"]
    assert last_discovered(compiled) is neurons


def test_a_distributed_model_is_looked_at_but_not_changed(process_group: None) -> None:
    model = mlp()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert admitted(wrapped) is model
    assert list(observe(wrapped, [torch.randn(4, 5)]).groups) == ["0"]
    assert "`.module`" in refusal(wrapped, admitted_for_change)
    assert refusal(nn.Sequential(nn.Flatten(), wrapped), admitted_for_change).startswith(
        "'1' (DistributedDataParallel)"
    )


@pytest.mark.filterwarnings("ignore")  # the older of the two is on its way out
def test_sharded_models_are_refused(process_group: None) -> None:
    assert "spread over processes" in refusal(FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")))
    inside = nn.Sequential(FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")), nn.Linear(3, 2))
    assert refusal(inside).startswith("'0' (FullyShardedDataParallel)")
    sharded = mlp()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    assert "Parameter '0.weight' is spread over processes. Prune the whole model before" in refusal(sharded)


def test_parameters_partitioned_by_deepspeed_are_refused() -> None:
    model = mlp()
    model[0].weight.ds_id = 0
    assert "'0.weight' is spread over processes" in refusal(model)


# Models that were written down


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_and_traced_models_are_refused_but_may_be_parts() -> None:
    assert "Prune the model it was made from" in refusal(torch.jit.script(mlp()))
    assert "Prune the model it was made from" in refusal(torch.jit.trace(mlp(), torch.zeros(2, 5)))
    model = nn.Sequential(torch.jit.script(mlp()), nn.ReLU(), nn.Linear(3, 2))
    assert [group.name for group in discover(model, torch.zeros(2, 5))] == ["0.0", "0.2"]


def test_exported_models_are_refused() -> None:
    exported = torch.export.export(mlp(), (torch.zeros(2, 5),))
    assert "Prune the model it was exported from" in refusal(exported)
    assert "Prune the model it was exported from" in refusal(exported.module())
    assert refusal(nn.Sequential(exported.module())).startswith("'0' (")


def test_a_symbolically_traced_model_is_a_model() -> None:
    assert [group.size for group in discover(torch.fx.symbolic_trace(mlp()), torch.zeros(2, 5))] == [8]


# Weights that are no plain numbers


class Packed(nn.Module):
    """Weights as small integers and scales, as most quantisers of language models keep them."""

    def __init__(self, dtype: torch.dtype, *, parameter: bool = False) -> None:
        super().__init__()
        weight = torch.ones(8, 5).to(dtype)
        if parameter:
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self.register_buffer("weight", weight)
        self.scales = nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.scales).T


@pytest.mark.parametrize(
    ("dtype", "parameter"),
    [(dtype, parameter) for dtype in (torch.int8, torch.uint8, torch.int32) for parameter in (False, True)]
    + [(torch.float8_e4m3fn, True)],
    ids=str,
)
def test_packed_weights_are_refused(dtype: torch.dtype, parameter: bool) -> None:
    message = refusal(nn.Sequential(Packed(dtype, parameter=parameter), nn.ReLU(), nn.Linear(8, 2)))
    assert "quantised weights" in message
    assert str(dtype) in message
    assert "before it is quantised" in message


def test_integers_that_are_no_weights_are_let_in() -> None:
    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = nn.Parameter(torch.ones(4))
            self.register_buffer("relative_position_index", torch.zeros(4, 4, dtype=torch.long))
            self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))

    model = nn.Sequential(Indexed())
    assert admitted(model) is model


@pytest.mark.filterwarnings("ignore")  # as a whole on its way out
def test_models_quantised_by_pytorch_are_refused_at_every_stage() -> None:
    quantization = torch.ao.quantization
    dynamic = quantization.quantize_dynamic(mlp(), {nn.Linear})
    assert "'0' (Linear) is of torch.ao.nn.quantized.dynamic" in refusal(dynamic)
    assert "'0.0' (Linear)" in refusal(nn.Sequential(dynamic, nn.Linear(3, 2)))
    prepared = mlp().train()
    prepared.qconfig = quantization.get_default_qat_qconfig("qnnpack")
    quantization.prepare_qat(prepared, inplace=True)
    assert "prepares for them" in refusal(prepared)


def test_a_linear_layer_of_bitsandbytes_is_known_by_its_package() -> None:
    class Linear4bit(nn.Linear):
        pass

    Linear4bit.__module__ = "bitsandbytes.nn.modules"
    assert "'1' (Linear4bit) is of bitsandbytes.nn.modules" in refusal(nn.Sequential(nn.ReLU(), Linear4bit(5, 8)))


def test_sparse_parameters_are_refused() -> None:
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    assert "to_dense()" in refusal(model)


def test_lazy_and_empty_models_are_refused() -> None:
    assert "Run one forward" in refusal(nn.Sequential(nn.LazyLinear(4)))
    assert "has no parameters" in refusal(nn.ReLU())


def test_tensors_that_act_in_their_own_way_are_refused() -> None:
    model = mlp()
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    message = refusal(model)
    assert "'0.weight' is a torch.testing._internal.two_tensor.TwoTensor" in message
    assert "not known how to cut" in message


def test_tensors_that_only_have_a_name_of_their_own_are_let_in() -> None:
    class Named(nn.Parameter):
        pass

    model = mlp()
    model[0].weight = Named(model[0].weight.detach())
    assert [group.size for group in discover(model, torch.zeros(2, 5))] == [8]


# Weights that are elsewhere


def test_offloaded_weights_are_refused() -> None:
    model = mlp()
    model[2]._hf_hook = SimpleNamespace(offload=True)  # as accelerate marks a module
    assert refusal(model).startswith("'2' (Linear) has weights that accelerate keeps elsewhere")
    model[2]._hf_hook = SimpleNamespace(hooks=(SimpleNamespace(offload=False), SimpleNamespace(offload=True)))
    assert refusal(model).startswith("'2' (Linear)")
    model[2]._hf_hook = SimpleNamespace(offload=False)
    assert admitted(model) is model


# Adapters


class Adapted(nn.Module):
    """A layer with adapters, as peft builds them."""

    adapter_layer_names = ("lora_A",)
    merged_adapters: tuple[str, ...] = ()

    def __init__(self, active: list[str], *, merged: tuple[str, ...] = (), disabled: bool = False) -> None:
        super().__init__()
        self.base_layer = nn.Linear(5, 8)
        self.lora_A = nn.ModuleDict({name: nn.Linear(5, 8) for name in ("first", "second")})
        self.active_adapters = active
        self.merged_adapters = merged
        self.disable_adapters = disabled


def test_adapters_must_all_be_in_use() -> None:
    layer = Adapted(["first", "second"])
    assert admitted(layer) is layer
    assert "the adapter 'second' is not in use" in refusal(Adapted(["first"]))
    assert "the adapter 'first', 'second' is not in use" in refusal(Adapted(["first", "second"], disabled=True))
    assert "merge_and_unload()" in refusal(Adapted(["first", "second"], merged=("first",)))


# No model at all


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([mlp(), mlp()], "0, 1"),
        ((mlp(),), "0"),
        ({"unet": mlp(), "steps": 20}, "'unet'"),
        (SimpleNamespace(unet=mlp(), vae=mlp(), steps=20), "'unet', 'vae'"),
    ],
    ids="list tuple dict object".split(),
)
def test_what_holds_models_is_none(given: Any, parts: str) -> None:
    assert refusal(given).endswith(f"Prune the modules in it one by one: {parts}.")


@pytest.mark.parametrize("given", [None, 3, "resnet18", torch.ones(2), []], ids=str)
def test_what_is_no_model_is_said(given: Any) -> None:
    for admit in (admitted, admitted_for_change):
        with pytest.raises(DiscoveryError, match=f"not {type(given).__name__}"):
            admit(given)
