"""What stands in for neurons, against the same by hand."""

import numpy as np
import pytest
import torch
from tests.neuronscope.test_impact import TEXTS, Letters, louder
from tests.neuronscope.test_weights import gpt2, llama
from torch import Tensor, nn

from neuronscope.ablation import PARTS, RIDGES, _Fit, fillers
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.inputs import batches_of
from tracker import discover
from tracker.batches import evaluating
from tracker.errors import ConfigError
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap

pytest.importorskip("transformers")


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_ridge_regression_solves_its_equations(shape: tuple[int, int]) -> None:
    x, y = torch.randn(*shape, dtype=torch.float64), torch.randn(shape[0], 3, dtype=torch.float64)
    for ridge in RIDGES:
        found = _Fit(x, y)(ridge)
        centred, wanted = x - x.mean(0), y - y.mean(0)
        strength = ridge * centred.square().mean() * len(x)
        # The gradient of ‖Y − XB‖² + λ‖B‖² is zero.
        gradient = centred.T @ (centred @ found.matrix - wanted) + strength * found.matrix
        assert gradient.abs().max() < 1e-8 * centred.square().sum()
        torch.testing.assert_close(found(x.mean(0, keepdim=True)), y.mean(0, keepdim=True))


def test_a_neuron_that_others_tell_is_filled_in_as_it_was_and_noise_by_its_mean() -> None:
    """Neuron 3 is made a copy of neuron 4; what nobody can tell stays near its mean on places not seen."""
    model = louder(gpt2())
    mlp = model.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight[:, 3] = mlp.c_fc.weight[:, 4]
        mlp.c_fc.bias[3] = mlp.c_fc.bias[4]
    discover(model)
    analyzer = PruningImpactAnalyzer(model, Letters())
    texts = [f"{text} {number}" for number in range(12) for text in TEXTS]
    scores = {
        how: analyzer.simulate([(0, 3)], texts, ablation=how).impact_score for how in ("zero", "mean", "repaired")
    }
    assert scores["repaired"] < 0.05 * scores["mean"]
    assert scores["mean"] != scores["zero"]


def test_nobody_is_asked_about_what_it_has_seen() -> None:
    """Of noise a regression of many on few fits what it saw; a fair one does no better than the mean."""

    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 64), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x)))

    model = Noise().eval()
    neurons = discover(model, torch.randn(2, 4))
    group = neurons["up"]
    noise = torch.randn(40, 64)
    batches = batches_of(model, None, torch.randn(40, 4), 16)
    seen: list[Tensor] = []

    def random(_: NeuronGroup, read: Read, x: Tensor) -> Tensor:
        start = sum(map(len, seen))
        seen.append(x)
        return noise[start : start + len(x)]

    with evaluating(model), tap(model, [group], random):
        # What is learned from, and later filled in, is noise.
        filler = fillers(model, neurons, {"up": [0, 1]}, batches, "repaired")["up"]
    filled, start = [], 0
    for number in range(3):
        part = noise[start : start + 16]
        filled.append(filler(group.reads[0], part, number))
        start += len(part)
    found = torch.cat(filled)
    assert torch.equal(found[:, 2:], noise[:, 2:])
    error = (found[:, :2] - noise[:, :2]).square().mean()
    assert error > 0.8 * noise[:, :2].var()
    assert PARTS > 1


@pytest.mark.parametrize("kind", [gpt2, llama])
def test_one_that_cannot_be_learned_is_the_mean(kind: type) -> None:
    model = louder(kind())
    discover(model)
    analyzer = PruningImpactAnalyzer(model, Letters())
    few = "abc"  # three places
    mean, repaired = (analyzer.simulate([(0, 1), (0, 2)], few, ablation=how) for how in ("mean", "repaired"))  # type: ignore[arg-type]
    assert repaired.impact_score == pytest.approx(mean.impact_score, rel=1e-4)
    everything = [(1, neuron) for neuron in range(analyzer.layers[1].size)]
    assert np.isfinite(analyzer.simulate(everything, TEXTS, ablation="repaired").impact_score)
    with pytest.raises(ConfigError, match="'half' is unknown"):
        analyzer.simulate([(0, 1)], few, ablation="half")  # type: ignore[arg-type]
