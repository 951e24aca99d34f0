"""Batches to learn from and to judge by, and samples made of samples."""

import pytest
import torch
from torch import Tensor, nn

import pruner
from pruner.compensation.calibration import HELD_OUT, SAMPLES, calibration, joined, samples_of
from tracker.batches import Batch


def texts(count: int = 40, length: int = 12) -> Batch:
    ids = torch.arange(count * length).view(count, length)
    mask = torch.arange(length) < torch.arange(3, 3 + count).clamp(max=length).unsqueeze(1)
    return Batch((), {"input_ids": ids, "attention_mask": mask.long()}, None, mask)


def test_every_sample_is_seen_or_held_out_once() -> None:
    data = calibration([texts(), texts(40)])
    held = [data.batches[number] for number in data.held]
    seen = [data.batches[number] for number in data.seen]
    assert sum(map(samples_of, held)) == 80 // HELD_OUT
    assert sum(map(samples_of, seen)) == 80 - 80 // HELD_OUT
    assert max(map(samples_of, seen)) <= SAMPLES
    firsts = sorted(int(row[0]) for batch in (*held, *seen) for row in batch.kwargs["input_ids"])
    assert firsts == sorted(2 * [12 * row for row in range(40)])


def test_few_samples_are_all_seen() -> None:
    data = calibration([Batch((torch.randn(3, 5),))])
    assert data.seen == [0]
    assert not data.held


def test_batches_of_one_sample_are_held_out_whole() -> None:
    data = calibration([Batch((torch.full((1, 5), float(i)),)) for i in range(16)])
    assert sorted(float(data.batches[n].args[0][0, 0]) for n in data.held) == [7.0, 15.0]


def test_what_has_no_row_a_sample_stays_whole() -> None:
    shared = torch.arange(12)
    batch = Batch((torch.randn(40, 12), shared), target=torch.arange(40))
    for part in calibration([batch]).batches:
        assert part.args[1] is shared
        assert part.target is not None
        assert len(part.target) == len(part.args[0])


@pytest.mark.parametrize("left", [False, True])
def test_joined_tokens_are_a_piece_of_one_text_and_a_piece_of_another(left: bool) -> None:
    batch = texts(8)
    if left:
        batch = Batch(
            (),
            {name: x.flip(1) for name, x in batch.kwargs.items()},
            None,
            batch.kwargs["attention_mask"].flip(1).bool(),
        )
    new = joined(batch, torch.Generator().manual_seed(0))
    assert new is not None
    ids, mask = new.kwargs["input_ids"], new.kwargs["attention_mask"].bool()
    assert new.mask is not None
    assert torch.equal(new.mask, mask)
    before = {int(token) for token in batch.kwargs["input_ids"][~batch.mask]}
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        if int(real.sum()) < 4:
            continue
        owners = [int(token) // 12 for token in tokens[real]]
        assert set(owners) <= {row, owners[-1]}
        assert owners == sorted(owners, key=lambda owner: owner != row)  # first all of the one, then all of the other
        assert torch.equal(real.sort(descending=not left).values, real)  # no gap in what is real
        assert not {int(token) for token in tokens[real]} & before  # and nothing in it that was padding
    assert {int(token) for token in ids[~mask]} <= before


def test_positions_stay_in_order() -> None:
    batch = Batch((), {"input_ids": torch.randint(0, 99, (4, 12)), "position_ids": torch.arange(12).expand(4, 12)})
    new = joined(batch, torch.Generator().manual_seed(0))
    assert new is not None
    assert torch.equal(new.kwargs["position_ids"], batch.kwargs["position_ids"])


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 10, 4), (6, 5)])
def test_joined_numbers_are_of_two_samples(shape: tuple[int, ...]) -> None:
    x = torch.arange(6.0).reshape(6, *[1] * (len(shape) - 1)).expand(shape)
    new = joined(Batch((x,)), torch.Generator().manual_seed(0))
    assert new is not None
    assert new.args[0].shape == shape
    assert all(len(set(sample.flatten().tolist())) <= 2 for sample in new.args[0])
    assert not torch.equal(new.args[0], x)


def test_copies_are_made_of_what_is_seen_alone() -> None:
    data = calibration([texts()], copies=2)
    held = {int(row[0]) // 12 for n in data.held for row in data.batches[n].kwargs["input_ids"]}
    seen = {int(token) // 12 for n in data.seen for token in data.batches[n].kwargs["input_ids"].flatten()}
    assert not held & seen
    assert len(data.seen) == 3 * len(calibration([texts()]).seen)


def test_a_sample_alone_has_no_other() -> None:
    assert joined(Batch((torch.randn(1, 4),)), torch.Generator()) is None


@pytest.mark.parametrize("edges", [torch.randint(0, 10, (2, 30)), torch.rand(10, 10)])
def test_rows_that_are_no_samples_are_left_together(edges: Tensor) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 4)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            y = self.a(x).relu()
            near = edges @ y if edges.is_floating_point() else torch.zeros_like(y).index_add(0, edges[1], y[edges[0]])
            found: Tensor = self.b(near)
            return found

    data = [(torch.randn(10, 6), edges) for _ in range(9)]
    results = pruner.compress(Graph(), data, ratio=0.5, effort="default")
    assert results["neurons_pruned"] == 12
    assert (results["repair"]["samples"], results["repair"]["held_out"]) == (9, 1)
    assert results["verification"]["summary"]["overall_success"]
