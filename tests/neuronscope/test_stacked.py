"""Many absences at once are what each alone is, whatever the model's code looks like."""

import pytest
import torch
from tests.neuronscope.test_impact import TEXTS, Letters, louder
from tests.neuronscope.test_weights import gpt2, llama
from torch import Tensor, nn

from neuronscope.inputs import batches_of
from neuronscope.layers import Layers
from neuronscope.stacked import _way, absences, single_rows
from pruner.compensation.distance import answer
from tracker import discover
from tracker.batches import evaluating, forward
from tracker.taps import tap

pytest.importorskip("transformers")


class Counting(nn.Module):
    """Divides by its batch size: copies change what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))) / len(x)


class Stubborn(Counting):
    """Remembers how many rows came in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).view(x.shape[0], 3)


@pytest.mark.parametrize(
    ("model", "inputs", "way"),
    [
        (gpt2, TEXTS, "late"),
        (llama, TEXTS, "late"),
        (Counting, torch.randn(5, 4), "late"),
        (Stubborn, torch.randn(5, 4), "whole"),
    ],
)
def test_every_absence_is_exact(model: type, inputs: object, way: str) -> None:
    made = model().eval()
    made = louder(made) if way == "late" and not isinstance(made, Counting) else made
    neurons = discover(made, torch.randn(2, 4)) if isinstance(made, Counting) else discover(made)
    layer = Layers.of(neurons)[0]
    (group,) = layer.groups
    with evaluating(made):
        batches = batches_of(made, Letters(), inputs)  # type: ignore[arg-type]
        rows = [row for batch in batches for row in single_rows(batch)]
        assert len(rows) == len(inputs)  # type: ignore[arg-type]
        assert _way(made, layer.places, rows[0]) == way
        seen = list(absences(made, layer.places, rows))
        assert len(seen) == len(rows) * layer.size
        for one in seen:

            def silent(_: object, read: object, x: Tensor, neuron: int = one.neuron) -> Tensor:
                return x.index_fill(read.axis, torch.from_numpy(read.positions[neuron]), 0)  # type: ignore[attr-defined]

            with tap(made, [group], silent):
                expected = answer(forward(made, rows[one.batch]), rows[one.batch])
            torch.testing.assert_close(one.said.values, expected.values, rtol=1e-4, atol=1e-5)


def test_a_model_that_counts_its_rows_is_run_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counting().eval()
    layer = Layers.of(discover(made, torch.randn(2, 4)))[0]
    with evaluating(made):
        (batch,) = batches_of(made, None, torch.randn(5, 4))
        assert _way(made, layer.places, batch) == "single"
        assert len(list(absences(made, layer.places[1:3], [batch]))) == 2


def test_single_rows_have_no_padding() -> None:
    made = gpt2()
    (batch,) = batches_of(made, Letters(), TEXTS)
    rows = single_rows(batch)
    assert [row.kwargs["input_ids"].shape for row in rows] == [(1, len(text)) for text in TEXTS]
    assert all(bool(row.mask.all()) for row in rows if row.mask is not None)
    with evaluating(made):
        together = answer(forward(made, batch), batch).values
        apart = torch.cat([answer(forward(made, row), row).values for row in rows])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
