"""Magnitudes against plain arithmetic, and how magnitude and activity combine."""

import numpy as np
import pytest
import torch
from tests.pruner import small_cnn
from torch import nn

from pruner import scores
from pruner.scores import KnownActivity
from tracker.activity import observe
from tracker.discover import discover
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, NeuronMap, Site


def test_magnitude_is_the_norm_over_all_producer_weights() -> None:
    model = small_cnn.model()
    found = scores.magnitude(model, small_cnn.neuron_map(model))
    assert list(found) == ["conv1", "conv2", "fc1"]
    for name in found:
        weight = model.get_parameter(f"{name}.weight").detach().double().flatten(1)
        torch.testing.assert_close(found[name], weight.norm(dim=1))
        assert found[name].dtype == torch.float64


def test_mean_weight_is_per_weight() -> None:
    model = small_cnn.model()
    found = scores.mean_weight(model, small_cnn.neuron_map(model))
    torch.testing.assert_close(found["conv2"], model.conv2.weight.detach().double().flatten(1).abs().mean(1))


def test_a_bias_counts_only_where_there_is_nothing_else() -> None:
    model = small_cnn.model()
    with torch.no_grad():
        model.fc1.bias[0] = -1e6
    assert scores.relative(scores.magnitude(model, small_cnn.neuron_map(model))["fc1"])[0] < 2
    site = Site("bn1.weight", 0)
    alone = NeuronMap((NeuronGroup("bn1", 10, "channel", True, (site,), (), {site: np.arange(10)[:, None]}),))
    torch.testing.assert_close(scores.magnitude(model, alone)["bn1"], model.bn1.weight.detach().double().abs())


def test_a_neuron_of_several_slices_has_the_weight_of_all_of_them() -> None:
    """A head of two rows in a fused projection, and a tied weight that goes by two names."""
    model = nn.ModuleDict({"one": nn.Linear(3, 4, bias=False), "two": nn.Linear(3, 4, bias=False)})
    model["two"].weight = model["one"].weight
    heads = np.array([[0, 2], [1, 3]])
    sites = (Site("one.weight", 0), Site("two.weight", 0))
    neurons = NeuronMap((NeuronGroup("one", 2, "attention", True, sites, (), dict.fromkeys(sites, heads)),))
    weight = model["one"].weight.double().detach()
    expected = torch.stack([weight[[0, 2]].norm(), weight[[1, 3]].norm()])
    torch.testing.assert_close(scores.magnitude(model, neurons)["one"], expected)
    torch.testing.assert_close(scores.mean_weight(model, neurons)["one"][0], weight[[0, 2]].abs().mean())


def test_half_precision_weights_are_summed_in_double() -> None:
    model = nn.Sequential(nn.Linear(4096, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).half()
    with torch.no_grad():
        model[0].weight.fill_(300.0)  # its square does not fit into float16
    found = scores.magnitude(model, discover(model, torch.zeros(1, 4096, dtype=torch.float16)))
    assert found["0"].tolist() == [300.0 * 64, 300.0 * 64]


def test_weights_on_the_meta_device_have_no_values() -> None:
    model = small_cnn.model().to("meta")
    with pytest.raises(DataError, match=r"'conv1'.*meta device"):
        scores.magnitude(model, small_cnn.neuron_map(model))


def test_relative_to_the_mean_of_the_group() -> None:
    assert scores.relative(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.5, 1.0, 1.5]
    assert scores.relative(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_what_is_not_finite_is_infinitely_important() -> None:
    assert scores.relative(torch.tensor([1.0, torch.nan, 3.0, torch.inf])).tolist() == [0.5, torch.inf, 1.5, torch.inf]
    assert scores.relative(torch.tensor([torch.nan])).tolist() == [torch.inf]


def test_the_score_is_the_weighted_sum() -> None:
    magnitudes = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0, 5.0])}
    activities = {"a": torch.tensor([30.0, 10.0])}
    found = scores.combined(magnitudes, activities, 0.25, 0.75)
    assert found["a"].tolist() == [0.25 * 0.5 + 0.75 * 1.5, 0.25 * 1.5 + 0.75 * 0.5]
    assert found["b"].tolist() == [1.0, 1.0]
    assert scores.combined(magnitudes, activities, 1.0, 0.0)["a"].tolist() == [0.5, 1.5]
    assert scores.combined(magnitudes, activities, 0.0, 1.0)["a"].tolist() == [1.5, 0.5]


def test_activity_comes_from_a_trackers_statistics() -> None:
    model = small_cnn.model()
    neurons = discover(model, small_cnn.images())
    stats = observe(model, [small_cnn.images()])
    known = KnownActivity.of(stats)
    known.check(neurons)
    assert set(known.mean_magnitude) == {"conv1", "conv2", "fc1"}
    np.testing.assert_array_equal(known.mean_magnitude["fc1"].numpy(), stats["fc1"].mean_magnitude)
    np.testing.assert_array_equal(known.firing_frequency["fc1"].numpy(), stats["fc1"].firing_frequency)


def test_nothing_is_known_without_statistics() -> None:
    assert KnownActivity.of(None) == KnownActivity()


def test_activity_of_another_size_is_refused() -> None:
    model = small_cnn.model()
    known = KnownActivity({"fc1": torch.ones(5)}, {})
    with pytest.raises(DataError, match="'fc1' has 128 neurons, and its activity was measured on 5"):
        known.check(small_cnn.neuron_map(model))
