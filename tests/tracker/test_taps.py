from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.watched_models import CNN, CNN_INPUT, Encoder, Raw, sentences, what_enters
from torch import Tensor, nn

from tracker.discover import discover
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import Taps, tap

Visit = tuple[str, Read, Tensor]


def collect(visits: list[Visit]) -> Callable[[NeuronGroup, Read, Tensor], None]:
    return lambda group, read, x: visits.append((group.name, read, x.clone()))


def cnn() -> tuple[CNN, NeuronMap, Tensor]:
    model, x = CNN().eval(), torch.randn(CNN_INPUT)
    return model, discover(model, x), x


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_visitors_see_what_the_consumers_read() -> None:
    model, neurons, x = cnn()
    visits: list[Visit] = []
    with tap(model, neurons, collect(visits)) as taps:
        model(x)
    seen = {read.module: tensor for _, read, tensor in visits}
    for layer in ("conv2", "fc1", "fc2"):
        (expected,) = what_enters(model, layer, [x], model)
        assert torch.equal(seen[layer], expected)
    assert taps.silent == ()


def test_operators_on_raw_parameters() -> None:
    model, x = Raw(), torch.randn(4, 8)
    neurons = discover(model, x)
    assert {read.how for group in neurons for read in group.reads} == {"operator"}
    visits: list[Visit] = []
    with torch.no_grad(), tap(model, neurons, collect(visits)) as taps:
        model(x)
    assert taps.silent == ()
    hidden = torch.relu(x @ model.first)
    seen = {read.parameter: tensor.select(read.axis, 0) for _, read, tensor in visits}
    torch.testing.assert_close(seen["second"], hidden[:, 0])
    torch.testing.assert_close(seen["third"], torch.relu(hidden @ model.second)[:, 0])


@pytest.mark.parametrize("how", ["input", "operator"])
def test_a_returned_tensor_is_read_instead(how: str) -> None:
    if how == "input":
        model, neurons, x = cnn()
    else:
        model, x = Raw(), torch.randn(4, 8)
        neurons = discover(model, x)

    def silence(group: NeuronGroup, read: Read, value: Tensor) -> Tensor:
        return value.index_fill(read.axis, torch.from_numpy(read.positions[0]), 0.0)

    with torch.no_grad():
        plain = model(x)
        with tap(model, neurons, silence):
            silenced = model(x)
        for group in neurons:
            for site, positions in group.slices([0]).items():
                if site in group.consumers:
                    model.get_parameter(site.parameter).index_fill_(site.dim, positions, 0.0)
        expected = model(x)
    torch.testing.assert_close(silenced, expected)
    assert not torch.allclose(silenced, plain)


def test_replacements_carry_gradients_at_a_layer_s_input() -> None:
    model, neurons, x = cnn()
    scale = torch.ones((), requires_grad=True)
    with tap(model, [neurons["fc1"]], lambda group, read, value: value * scale):
        model(x).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_consumers_that_did_not_run_are_silent() -> None:
    model, neurons, x = cnn()
    with tap(model, neurons, lambda *_: None) as taps:
        assert {read.module for read in taps.silent} == {"conv2", "fc1", "fc2"}
        model.conv1(x)
        model.fc1(torch.randn(2, 64))
        assert {read.module for read in taps.silent} == {"conv2", "fc2"}


def test_inputs_passed_by_name_are_seen() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(input=torch.relu(self.one(input=x)))

    model, x = ByName(), torch.randn(5, 3)
    neurons = discover(model, x)
    visits: list[Visit] = []
    with tap(model, neurons, lambda group, read, value: visits.append((group.name, read, value)) or value * 0):
        out = model(x)
    assert len(visits) == 1
    torch.testing.assert_close(out, model.two.bias.expand(5, 2))


def test_the_fused_path_of_multi_head_attention_does_not_hide_reads() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 5, 8)
    neurons = discover(model, x)
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), tap(model, neurons, lambda *_: None) as taps:
        model(x)
    assert taps.silent == ()
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_come_off_whatever_happens(error: type[BaseException]) -> None:
    model, neurons, x = cnn()

    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(error), tap(model, neurons, fail):
        model(x)
    with tap(model, neurons, fail):
        assert hooks(model) == 3
    assert hooks(model) == 0


def test_hooks_come_off_where_a_layer_is_missing() -> None:
    model, neurons, _ = cnn()
    del model.fc2
    with pytest.raises(AttributeError), tap(model, neurons, lambda *_: None):
        pass
    assert hooks(model) == 0


def test_heads_are_read_at_the_output_projection() -> None:
    model, batch = Encoder().eval(), sentences(1)[0]
    neurons = discover(model, (), batch)
    (group,) = (group for group in neurons if group.kind == "attention")
    assert group.size == 3
    visits: list[Visit] = []
    with tap(model, [group], collect(visits)):
        model(**batch)
    assert [(read.module, tensor.shape[read.axis]) for _, read, tensor in visits] == [("out", 12)]


def test_a_product_that_runs_in_another_way_than_in_the_trace() -> None:
    class Left(nn.Module):
        """A weight times a batch of activations: one product or many, as their strides have it."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(5, 4))
            self.strided = False

        def forward(self, x: Tensor) -> Tensor:
            made = self.before(x).transpose(1, 2)
            return self.weight @ (made if self.strided else made.contiguous())

    model, x = Left(), torch.randn(2, 6, 3)
    (group,) = discover(model, x)
    seen: list[Tensor] = []
    for model.strided in (False, True):
        with torch.no_grad(), tap(model, [group], lambda group, read, x: seen.append(x.movedim(read.axis, -1))):
            model(x)
    assert len(seen) == 2
    for read in seen:
        torch.testing.assert_close(read.reshape(2, 6, 4), model.before(x))


def test_a_read_is_one_object_wherever_it_happens() -> None:
    """Visitors remember what they made for a read by its identity: one that lives no longer lends it to another."""
    groups = list(cnn()[1])
    taps, seen = Taps(groups), []
    for _ in range(3):
        for pair in taps.pairs:
            taps.visit([pair], torch.zeros(2, 3), lambda _, read, x: seen.append(id(read)), axis=-7)
    assert len(set(seen)) == len(taps.pairs) >= 2
