"""What discovery answers about models of unusual shape, and what it leaves alone."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact, check_whole
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F

from tracker import NeuronMap, discover, last_discovered, neurons_of
from tracker.errors import DiscoveryError


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, h: {"logits": y},
        lambda y, h: (y, [y * 2, {"deep": y}]),
        lambda y, h: Answer(y),
        lambda y, h: {"logits": y}.values(),
        lambda y, h: torch.distributions.Normal(y, y.exp(), validate_args=False),
    ],
    ids=["dict", "nested", "dataclass", "view", "distribution"],
)
def test_outputs_of_any_structure_are_frozen(wrap: Any) -> None:
    def compute(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.a(x))
        return wrap(m.b(hidden), hidden)

    model = Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    found = discover(model, rows())
    assert sizes(found) == {"a": 8}
    assert reason(found, "b") == "is the model's output"


@pytest.mark.parametrize(
    "leak", [lambda h: Answer(h, h), lambda h: [h], lambda h: h.detach().tolist(), lambda h: h.detach().numpy()]
)
def test_what_leaves_the_model_stays_whole(leak: Any) -> None:
    def compute(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.a(x))
        return m.b(hidden), leak(hidden)

    found = discover(Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), rows())
    assert not len(found)
    assert any(said in reason(found, "a") for said in ("output", "leaves PyTorch"))


def test_inputs_in_objects_are_activations_and_are_left_clean() -> None:
    @dataclass
    class Batch:
        pixels: Tensor

    def compute(m: Any, batch: Batch) -> Tensor:
        result: Tensor = m.b(F.relu(m.a(batch.pixels))) + m.q(batch.pixels) @ m.k(batch.pixels).T
        return result

    model = Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(8, 4), q=nn.Linear(6, 5), k=nn.Linear(6, 5))
    batch = Batch(rows())
    found = discover(model, (batch,))
    assert sizes(found) == {"a": 8}
    assert "contracted with another activation" in reason(found, "q")
    assert vars(batch.pixels) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    found = discover(model, rows().to(dtype))
    assert [(group.name, group.size, group.exact) for group in found] == [("0", 8, False)]
    assert next(model.parameters()).dtype == dtype


def test_frozen_and_unused_parameters() -> None:
    model = between(lambda m, h: F.relu(h), spare=nn.Linear(6, 8), loose=nn.Parameter(torch.randn(5, 7)))
    model.get_submodule("a").requires_grad_(False)
    found = check_exact(model, rows())
    assert sizes(found) == {"a": 8}
    assert not model.get_parameter("a.weight").requires_grad
    assert model.get_parameter("b.weight").requires_grad


def test_modules_used_twice_and_parameters_under_two_names() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        hidden = F.relu(m.a(x))
        for _ in range(3):
            hidden = hidden + m.step(F.relu(m.again(hidden)))
        result: Tensor = F.linear(hidden, m.a.weight.T)
        return result

    step = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))
    model = Sample(compute, a=nn.Linear(6, 8), step=step, again=nn.Identity())
    model.shared = model.step
    found = check_exact(model, rows())
    assert sizes(found) == {"step.2": 8, "step.0": 5}
    assert found["shared.2"] is found["step.2"]
    assert {("a.weight", 0), ("step.0.weight", 1)} <= set(found["step.2"].consumers)
    assert ("shared.0.weight", 0) in found["step.0"].members


def test_a_model_of_no_layers_but_parameters() -> None:
    model = Sample(
        lambda m, x: F.relu(x @ m.up + m.bias) @ m.down,
        up=nn.Parameter(torch.randn(6, 8)), bias=nn.Parameter(torch.randn(8)), down=nn.Parameter(torch.randn(8, 3)),
    )  # fmt: skip
    found = check_exact(model, rows())
    assert sizes(found) == {"up": 8}
    assert {site.parameter for site in found["up"].producers} >= {"up", "bias"}
    assert [site.parameter for site in found["up"].consumers] == ["down"]


def test_empty_maps_are_remembered_like_others() -> None:
    model = nn.Linear(4, 2)
    found = discover(model, torch.zeros(1, 4))
    assert len(found) == 0
    assert neurons_of(model) is found is last_discovered(model)
    other = NeuronMap(())
    assert neurons_of(model, other) is other


def test_operators_without_a_rule_are_named_and_freeze_what_enters() -> None:
    library = torch.library.Library("neuronscope_unknown", "DEF")
    library.define("mixed(Tensor x) -> Tensor")
    library.impl("mixed", lambda x: x * x.mean(), "CompositeExplicitAutograd")
    try:
        found = check_exact(between(lambda m, h: torch.ops.neuronscope_unknown.mixed(h)), rows())
    finally:
        library._destroy()
    assert not len(found)
    assert list(found.operators_without_rule) == ["neuronscope_unknown.mixed.default"]
    assert "`neuronscope_unknown.mixed.default`, which has no rule" in reason(found, "a")


def test_scripted_parts_are_seen_through() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        script = torch.jit.script(nn.Sequential(nn.Linear(8, 7), nn.ReLU()))
    model = nn.Sequential(nn.Linear(6, 8), script, nn.Linear(7, 3)).train()
    found = discover(model, rows())
    assert sizes(found) == {"0": 8, "1.0": 7}
    assert all(module.training for module in model.modules())


def test_compiled_models_are_discovered_as_themselves() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    wrapper = nn.Module()
    wrapper._orig_mod = model  # as torch.compile wraps
    assert sizes(discover(wrapper, rows())) == {"0": 8}
    assert last_discovered(model) is last_discovered(wrapper)


def test_copies_of_a_model_are_other_models() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    discover(model, rows())
    assert last_discovered(copy.deepcopy(model)) is None


@pytest.mark.parametrize("kind", ["integer", "quantised"])
def test_weights_that_are_not_numbers_are_refused(kind: str) -> None:
    model = nn.Linear(4, 2)
    model.extra = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DiscoveryError, match=r"'extra' holds quantised weights \(torch.int8\)"):
        discover(model, torch.zeros(1, 4))


def test_groups_of_concatenated_streams_never_overlap() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        parts = [m.layers[0](x)]
        for layer in m.layers[1:]:
            parts.append(layer(F.relu(torch.cat(parts, 1))))
        result: Tensor = m.out(torch.cat(parts[::-1], 1))
        return result

    layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(9, 3)])
    model = Sample(compute, layers=layers, out=nn.Linear(12, 2))
    found = check_exact(model, rows())
    assert sizes(found) == {"layers.0": 4, "layers.1": 5, "layers.2": 3}
    assert found["layers.1"].slices([0])[("out.weight", 1)].tolist() == [3]  # type: ignore[index]
    check_whole(model, found)


def test_a_single_neuron_is_no_group() -> None:
    found = discover(nn.Sequential(nn.Linear(6, 2), nn.GLU(), nn.Linear(1, 3)), rows())
    assert not len(found)
    assert reason(found, "0") == "is a single neuron"
