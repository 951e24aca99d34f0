import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.tracker.watched_models import CNN, Encoder, Raw, by_neuron, images, sentences, what_enters
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tracker.activity import ActivityStats, GroupActivity, observe
from tracker.discover import discover, forget
from tracker.errors import ConfigError, DataError, UnknownLayerError


def check(found: GroupActivity, values: np.ndarray) -> None:
    """Against float64 numpy; `values` has shape (count, size)."""
    assert found.count == len(values)
    scale = np.abs(values).max()
    np.testing.assert_allclose(found.mean, values.mean(0), atol=1e-6 * scale)
    np.testing.assert_allclose(found.variance, values.var(0), rtol=1e-5, atol=1e-9 * scale)
    np.testing.assert_array_equal(found.minimum, values.min(0))
    np.testing.assert_array_equal(found.maximum, values.max(0))
    np.testing.assert_allclose(found.mean_magnitude, np.abs(values).mean(0), rtol=1e-5)


def made(**given: Any) -> GroupActivity:
    size = len(next(iter(given.values())))
    names = ("mean", "variance", "minimum", "maximum", "mean_magnitude", "firing_frequency")
    arrays = {name: np.asarray(given.get(name, np.zeros(size)), dtype=np.float64) for name in names}
    return GroupActivity(name="fc", kind="mlp", exact=True, count=100, **arrays)


def test_a_cnn_against_plain_hooks() -> None:
    model, data = CNN(), images()
    stats = observe(model, data)
    assert stats.batches == 3
    assert set(stats) == {"conv1", "conv2", "fc1"}
    conv1 = by_neuron(what_enters(model, "conv2", data, lambda b: model(b[0])), 1)
    check(stats["conv1"], conv1)
    np.testing.assert_allclose(stats["conv1"].firing_frequency, (conv1 > 0).mean(0))
    flattened = by_neuron(what_enters(model, "fc1", data, lambda b: model(b[0])), 1)
    check(stats["conv2"], flattened.reshape(-1, 4, 16).swapaxes(1, 2).reshape(-1, 4))
    check(stats["fc1"], by_neuron(what_enters(model, "fc2", data, lambda b: model(b[0])), 1))


def test_an_encoder_without_its_padding() -> None:
    model, data = Encoder(), sentences()
    stats = observe(model, data)
    real = torch.cat([batch["attention_mask"].flatten() for batch in data]).bool().numpy()
    assert 0 < real.sum() < len(real)
    heads = by_neuron(what_enters(model, "out", data, lambda b: model(**b)), -1)[real]
    check(stats["value" if "value" in stats else "query"], heads.reshape(-1, 3, 4).swapaxes(1, 2).reshape(-1, 3))
    check(stats["up"], by_neuron(what_enters(model, "down", data, lambda b: model(**b)), -1)[real])


def test_without_padding_a_mask_changes_nothing() -> None:
    model, data = Encoder(), sentences(padded=False)
    with_mask = observe(model, data)["up"]
    without = observe(model, [batch["input_ids"] for batch in data])["up"]
    assert with_mask.count == without.count == 56
    np.testing.assert_allclose(with_mask.mean, without.mean, rtol=1e-5, atol=1e-7)


def test_raw_parameters() -> None:
    model, x = Raw(), torch.randn(9, 8)
    stats = observe(model, [x])
    check(stats["first"], torch.relu(x @ model.first).detach().double().numpy())


def test_inexact_groups_only_when_asked_for() -> None:
    model, data = Encoder(), sentences()
    stats = observe(model, data)
    inexact = [entry for entry in stats.untracked if not entry.exact]
    assert inexact
    assert "ask for it with groups= or include_inexact=True" in inexact[0].reason
    with pytest.raises(UnknownLayerError, match=r"was not tracked: it is not exact"):
        stats[inexact[0].name]
    assert inexact[0].name in observe(model, data, include_inexact=True)
    only = observe(model, data, groups=[inexact[0].name])
    assert set(only) == {inexact[0].name}
    assert {entry.reason for entry in only.untracked} == {"not asked for"}
    with pytest.raises(UnknownLayerError, match=r"no layer 'upp'. Did you mean 'up'\?"):
        observe(model, data, groups=["upp"])


def test_consumers_that_never_ran() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
            self.skip = nn.Linear(3, 2)

        def forward(self, x: Tensor, short: bool = False) -> Tensor:
            return self.skip(x) if short else self.two(torch.relu(self.one(x)))

    model = Branching()
    neurons = discover(model, torch.randn(2, 3))
    stats = observe(model, [{"x": torch.randn(2, 3), "short": True}], neurons)
    assert not stats
    assert stats.untracked[0].reason == "its consumers never ran on this data"


def test_bfloat16_models() -> None:
    model, data = CNN().bfloat16(), images()
    stats = observe(model, data)
    inputs = what_enters(model, "fc2", data, lambda b: model(b[0].bfloat16()))
    check(stats["fc1"], by_neuron(inputs, 1))


@pytest.mark.gpu
def test_the_gpu_says_the_same() -> None:
    data = images()
    model = CNN()
    expected = observe(model, data, covariance=True)
    found = observe(model.to("cuda"), data, covariance=True)
    for name, group in expected.items():
        np.testing.assert_allclose(found[name].mean, group.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[name].variance, group.variance, rtol=1e-2, atol=1e-4)


def trace(model: nn.Module) -> dict[str, Any]:
    """Everything that observing must not change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": random.getstate()[1],
        "fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor | np.ndarray):
        return bool((one == other).all())
    return bool(one == other)


def trained_cnn() -> CNN:
    model = CNN().train()
    model.norm.eval()
    model.conv1.weight.requires_grad_(False)
    model(images(1)[0][0]).sum().backward()
    return model


def test_observing_leaves_no_trace() -> None:
    model = trained_cnn()
    loader = DataLoader(TensorDataset(torch.randn(20, 1, 8, 8)), batch_size=4, shuffle=True)
    before = trace(model)
    observe(model, loader)
    assert same(trace(model), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interruption_leaves_no_trace(error: type[BaseException]) -> None:
    model = trained_cnn()
    data = images()
    discover(model, data[0][0])
    before = trace(model)
    calls = 0

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error("stop")

    handle = model.fc1.register_forward_hook(fail)
    with pytest.raises(error) as raised:
        observe(model, data)
    handle.remove()
    assert same(trace(model), before)
    if error is RuntimeError:
        assert "with batch 1 of the data" in raised.value.__notes__[0]


def test_a_generator_keeps_its_first_batch() -> None:
    data = [batch[0] for batch in images()]
    model = CNN()
    forget(model)
    found = observe(model, (x for x in data))
    assert found.batches == 3
    np.testing.assert_array_equal(found["fc1"].mean, observe(model, data)["fc1"].mean)


@pytest.mark.parametrize("empty", [list, lambda: iter([])])
def test_an_empty_loader(empty: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match="The data loader is empty"):
        observe(CNN(), empty())


def test_a_loader_that_turns_bad() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.randn(2, 1, 8, 8)
        yield torch.full((2, 1, 8, 8), float("nan"))

    with pytest.raises(DataError, match=r"Batch 1: input 0 holds 128 values that are NaN or Inf"):
        observe(CNN(), batches())


def test_nan_weights_name_the_layer() -> None:
    model = CNN()
    discover(model, images(1)[0][0])
    with torch.no_grad():
        model.fc1.weight[2, 3] = float("nan")
    with pytest.raises(DataError, match=r"Layer 'fc1': NaN or Inf in the activations, first in batch 0"):
        observe(model, images())


def test_a_compiled_model_is_observed_uncompiled() -> None:
    model, data = CNN(), images()
    compiled = torch.compile(model, backend="eager")
    np.testing.assert_array_equal(observe(compiled, data)["fc1"].mean, observe(model, data)["fc1"].mean)


def test_covariance_and_its_limit() -> None:
    model, data = CNN(), images()
    stats = observe(model, data, covariance=True)
    values = by_neuron(what_enters(model, "fc2", data, lambda b: model(b[0])), 1)
    np.testing.assert_allclose(stats.covariance["fc1"], np.cov(values.T, bias=True), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.diag(stats.covariance["conv2"]), stats["conv2"].variance, rtol=1e-5, atol=1e-9)
    varying = values.std(0) > 0
    expected = np.corrcoef(values[:, varying].T)
    np.testing.assert_allclose(stats.correlation("fc1")[np.ix_(varying, varying)], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="need"):
        observe(model, data, covariance=True, covariance_limit=100)
    with pytest.raises(DataError, match=r"covariance of layer 'fc1' was not tracked"):
        observe(model, data).correlation("fc1")


def test_parts_merge_to_the_whole() -> None:
    model, data = CNN(), images(4)
    whole = observe(model, data)
    merged = observe(model, data[:1]).merge(observe(model, data[1:]))
    assert merged.batches == 4
    for name, group in whole.items():
        found = merged[name]
        assert found.count == group.count
        for statistic in ("mean", "variance", "minimum", "maximum", "mean_magnitude", "firing_frequency"):
            np.testing.assert_allclose(getattr(found, statistic), getattr(group, statistic), rtol=1e-6, atol=1e-9)


def test_other_structures_do_not_merge() -> None:
    with pytest.raises(DataError, match="different models"):
        observe(CNN(), images()).merge(observe(Encoder(), sentences()))


def test_json_round_trip() -> None:
    stats = observe(Encoder(), sentences())
    data = json.loads(json.dumps(stats.to_json()))
    found = ActivityStats.from_json(data)
    assert found.to_json() == stats.to_json()
    for broken in ({}, {**data, "version": 2}, {**data, "groups": [{}]}, {**data, "batches": None}):
        with pytest.raises(DataError):
            ActivityStats.from_json(broken)
    data["groups"][0]["mean"].pop()
    with pytest.raises(DataError, match="differ in length"):
        ActivityStats.from_json(data)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UnknownLayerError, match=r"activity of a layer 'fc11'. Did you mean 'fc1'\?"):
        observe(CNN(), images())["fc11"]


def test_dead_neurons_of_a_relu() -> None:
    model = CNN()
    with torch.no_grad():
        model.fc1.weight[3] = 0
        model.fc1.bias[3] = -1
    stats = observe(model, images())
    assert 3 in stats.dead["fc1"]
    assert stats["fc1"].firing_frequency[3] == 0


def test_dead_is_relative_to_the_layer() -> None:
    scale = np.array([1.0, 1e-4, 1e-4])
    firing = np.array([0.9, 0.0, 0.1])
    for factor in (1.0, 1e-6, 1e6):
        group = made(
            mean=scale * factor,
            variance=np.zeros(3),
            minimum=-scale * factor,
            maximum=scale * factor,
            firing_frequency=firing,
        )
        assert group.dead.tolist() == [False, True, False]


def test_a_layer_that_is_all_dead() -> None:
    assert made(mean=[0.0, 0.0]).dead.all()


def test_constant_neurons_vary_by_rounding_only() -> None:
    group = made(mean=[2.0, 2.0, -2.0, 0.0], variance=[0.0, 1.0, 1e-10, 0.0], firing_frequency=[1.0, 1.0, 1.0, 0.0])
    assert group.constant.tolist() == [True, False, True, False]


def test_saturation_is_the_share_of_the_largest_possible_variance() -> None:
    uniform = made(mean=[0.0], variance=[1 / 3], minimum=[-1.0], maximum=[1.0])
    assert uniform.saturation[0] == pytest.approx(1 / 3)
    extremes = made(mean=[0.5, 0.0], variance=[0.75, 0.0], minimum=[-1.0, 0.0], maximum=[1.0, 0.0])
    assert extremes.saturation.tolist() == [1.0, 0.0]
    tanh = observe(Squashed(20.0), [torch.randn(500, 3)])["one"]
    assert np.median(tanh.saturation) > 0.9
    assert np.median(observe(Squashed(0.5), [torch.randn(500, 3)])["one"].saturation) < 0.5


class Squashed(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.one, self.two, self.gain = nn.Linear(3, 8), nn.Linear(8, 2), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.gain * self.one(x)))
