"""Recurrent layers run as the operators they consist of; the gates of a neuron go together."""

from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact, same
from tests.tracker.samples import Sample, reason, sizes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from tracker.operators import parts

STEPS = torch.randn(2, 5, 6)


def between_steps(layer: nn.Module, read: int) -> Sample:
    """A recurrent layer between two linear ones."""
    return Sample(lambda m, x: m.b(m.r(F.relu(m.a(x)))[0]), a=nn.Linear(6, 7), r=layer, b=nn.Linear(read, 3))


@pytest.mark.parametrize(
    ("layer", "read"),
    [
        (nn.LSTM(7, 8), 8),
        (nn.LSTM(7, 8, num_layers=2, batch_first=True), 8),
        (nn.LSTM(7, 8, 2, bidirectional=True), 16),
        (nn.GRU(7, 8, 2, bias=False), 8),
        (nn.GRU(7, 8, bidirectional=True, batch_first=True), 16),
        (nn.RNN(7, 8, 2, nonlinearity="relu"), 8),
    ],
)
def test_hidden_units_are_neurons(layer: nn.Module, read: int) -> None:
    assert sizes(check_exact(between_steps(layer, read), STEPS)) == {"a": 7, "r": 8}


def test_a_projection_narrows_and_the_cell_behind_it_stays() -> None:
    found = check_exact(between_steps(nn.LSTM(7, 8, proj_size=5), 5), STEPS)
    assert sizes(found) == {"a": 7, "r": 5}
    assert "is projected" in reason(found, "r")


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop(kind: type[nn.Module]) -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        state: Any = x.new_zeros(x.shape[0], m.r.hidden_size)
        state = (state, state) if kind is nn.LSTMCell else state
        for step in m.a(x).unbind(1):
            state = m.r(step, state)
        result: Tensor = m.b(state[0] if kind is nn.LSTMCell else state)
        return result

    made: Any = kind
    found = check_exact(Sample(compute, a=nn.Linear(6, 7), r=made(7, 8), b=nn.Linear(8, 3)), STEPS)
    assert sizes(found) == {"a": 7, "r": 8}


def test_a_learned_first_state_loses_the_same_neurons() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        states = [state.expand(-1, x.shape[0], -1).contiguous() for state in (m.first, m.cell)]
        result: Tensor = m.b(m.r(m.a(x), tuple(states))[1][0][-1])
        return result

    first, cell = (nn.Parameter(torch.randn(1, 1, 8)) for _ in range(2))
    model = Sample(
        compute, a=nn.Linear(6, 7), r=nn.LSTM(7, 8, batch_first=True), b=nn.Linear(8, 3), first=first, cell=cell
    )
    group = check_exact(model, STEPS, groups=["r"])["r"]
    assert {("first", 2), ("cell", 2)} <= set(group.members)


def test_sequences_of_several_lengths() -> None:
    def compute(m: Any, x: Tensor, lengths: Tensor) -> Any:
        packed = rnn.pack_padded_sequence(m.a(x), lengths, batch_first=True, enforce_sorted=False)
        out, (last, _) = m.r(packed)
        return m.b(rnn.pad_packed_sequence(out, batch_first=True, total_length=6)[0]), m.b(last[-1])

    model = Sample(compute, a=nn.Linear(6, 7), r=nn.LSTM(7, 8, batch_first=True), b=nn.Linear(8, 3))
    assert sizes(check_exact(model, STEPS, torch.tensor([3, 5]))) == {"a": 7, "r": 8}


def test_fused_steps_are_what_the_layers_compute() -> None:
    """The rule of an operator that only graphics cards have says of its parts what PyTorch says of its layer."""
    x, h, c = torch.randn(2, 7), torch.randn(2, 8), torch.randn(2, 8)
    lstm, gru = nn.LSTMCell(7, 8), nn.GRUCell(7, 8)
    products = [(F.linear(x, cell.weight_ih), F.linear(h, cell.weight_hh)) for cell in (lstm, gru)]
    hidden, cell, _ = parts.lstm_cell(*products[0], c, lstm.bias_ih, lstm.bias_hh)
    for made, expected in zip((hidden, cell), lstm(x, (h, c)), strict=True):
        torch.testing.assert_close(made, expected)
    torch.testing.assert_close(parts.gru_cell(*products[1], h, gru.bias_ih, gru.bias_hh)[0], gru(x, h))


def test_parts_are_what_their_operators_compute() -> None:
    x = torch.randn(2, 8, 4, 4)
    aten = torch.ops.aten
    made = [parts.pixel_shuffle(x, 2), parts.pixel_unshuffle(x, 2), parts.channel_shuffle(x, 4)]
    made += [parts.rot90(x, k, [2, 3]) for k in range(-1, 3)]
    expected = [aten.pixel_shuffle(x, 2), aten.pixel_unshuffle(x, 2), aten.channel_shuffle(x, 4)]
    expected += [torch.rot90(x, k, [2, 3]) for k in range(-1, 3)]
    same(made, expected)
