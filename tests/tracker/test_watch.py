from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import on_ranks
from tests.tracker.watched_models import CNN, by_neuron, images
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tracker.discover import discover
from tracker.errors import DataError
from tracker.moments import Row
from tracker.sums import Moments
from tracker.watch import Watch, watching


def watched(model: nn.Module, x: Tensor, **options: Any) -> Watch:
    return Watch(list(discover(model, x)), **options)


class SharedReads(nn.Module):
    """Three layers that read one tensor, and one that reads a tensor changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.query, self.key, self.value = (nn.Linear(4, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.query(x) + self.key(x) + self.value(x)


class ReadTwice(SharedReads):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.query(x) + self.key(x * 2) + self.value(x * 3)


class ChangedInPlace(SharedReads):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        total = self.query(x)
        x.mul_(2)
        return total + self.key(x) + self.value(x)


class Dense(nn.Module):
    """Two groups side by side in what one layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))


def block(model: nn.Module, x: Tensor, name: str, forwards: int = 1) -> Tensor:
    watch = watched(model, x)
    with watching(model, watch), torch.no_grad():
        for _ in range(forwards):
            model(x)
    return watch.results()[0][name]


def test_one_tensor_read_thrice_counts_once_in_a_forward() -> None:
    x = torch.randn(6, 3)
    assert block(SharedReads(), x, "first")[Row.COUNT, 0] == 6
    assert block(SharedReads(), x, "first", forwards=2)[Row.COUNT, 0] == 12


def test_different_tensors_are_pooled() -> None:
    model, x = ReadTwice(), torch.randn(6, 3)
    found = block(model, x, "first")
    hidden = torch.relu(model.first(x)).detach()
    values = by_neuron([hidden, hidden * 2, hidden * 3], -1)
    assert found[Row.COUNT, 0] == 18
    torch.testing.assert_close(found[Row.MEAN], torch.from_numpy(values.mean(0)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[Row.M2] / 18, torch.from_numpy(values.var(0)), rtol=1e-5, atol=1e-6)


def test_a_tensor_changed_in_place_is_another() -> None:
    assert block(ChangedInPlace(), torch.randn(6, 3), "first")[Row.COUNT, 0] == 12


def test_groups_side_by_side_in_one_tensor() -> None:
    model, x = Dense(), torch.randn(6, 3)
    torch.testing.assert_close(
        block(model, x, "right")[Row.MEAN], model.right(x).relu().double().mean(0).detach(), rtol=1e-6, atol=1e-6
    )
    assert block(model, x, "left").shape[1] == 4


def test_calls_of_parts_do_not_count() -> None:
    model, x = CNN(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch):
        model.fc1(torch.randn(3, 64))
    assert watch.batches == 0
    assert (watch.results()[0]["conv2"][Row.COUNT] == 0).all()


def test_recomputation_in_the_backward_does_not_count() -> None:
    class Checkpointed(CNN):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    model, x = Checkpointed(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch):
        model(x.requires_grad_()).sum().backward()
    assert watch.results()[0]["fc1"][Row.COUNT, 0] == 5


def test_evaluation_does_not_count_where_only_training_does() -> None:
    model, x = CNN(), images(1)[0][0]
    watch = watched(model, x, only_training=True)
    with watching(model, watch):
        model.eval()(x)
        assert watch.batches == 0
        model.train()(x)
        assert watch.batches == 1


def test_a_forward_that_fails_is_no_batch() -> None:
    model, x = CNN(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch):
        with pytest.raises(RuntimeError):
            model(x[:, :, :4])
        model(x)
    assert watch.batches == 1


def test_a_model_that_changes_on_the_way_is_an_error() -> None:
    model, x = CNN().eval(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch), torch.no_grad():
        model(x)
        model.fc1 = nn.Linear(64, 7)
        model.fc2.weight.data = model.fc2.weight.data[:, :7]
        model(x)
    with pytest.raises(DataError, match=r"was changed while it was tracked: 'fc2' read 7 channels instead of 10"):
        watch.results()
    watch.reset()
    watch.results()


def test_inference_mode_and_no_grad_mix() -> None:
    model, x = CNN(), images(1)[0][0]
    watch = watched(model, x, covariance=True)
    with watching(model, watch):
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
        with torch.inference_mode():
            model(x)
    assert watch.results()[0]["fc1"][Row.COUNT, 0] == 15


class Flattening(nn.Module):
    """Tokens laid end to end, as in mixtures of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(9, 3), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.two(torch.relu(self.one(self.embed(input_ids).flatten(0, 1))))


def test_padding_of_flattened_tokens_does_not_count() -> None:
    model, ids = Flattening(), torch.randint(9, (3, 5))
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [1]])
    watch = Watch(list(discover(model, ids)))
    with watching(model, watch), torch.no_grad():
        model(ids, attention_mask=mask)
        hidden = torch.relu(model.one(model.embed(ids)))[mask].double()
    found = watch.results()[0]["one"]
    assert found[Row.COUNT, 0] == 8
    torch.testing.assert_close(found[Row.MEAN], hidden.mean(0), rtol=1e-6, atol=1e-7)


def test_autocast() -> None:
    model, x = CNN().eval(), images(1)[0][0]
    watch = watched(model, x, covariance=True)
    with watching(model, watch), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(x)
    blocks, covariance = watch.results()
    expected = block(model, x, "fc1")
    torch.testing.assert_close(blocks["fc1"][Row.MEAN], expected[Row.MEAN], rtol=0.1, atol=0.02)
    torch.testing.assert_close(
        torch.from_numpy(covariance["fc1"]).diag(), blocks["fc1"][Row.M2] / 5, rtol=1e-4, atol=1e-8
    )


def test_a_reset_forgets() -> None:
    model, x = CNN().eval(), images(1)[0][0]
    watch = watched(model, x, covariance=True)
    with watching(model, watch):
        model(x * 100)
        watch.reset()
        assert watch.batches == 0
        model(x)
    blocks, covariance = watch.results()
    once = block(model, x, "fc1")
    assert torch.equal(blocks["fc1"], once)
    torch.testing.assert_close(torch.from_numpy(covariance["fc1"]).diag(), once[Row.M2] / 5, rtol=1e-5, atol=1e-9)


def test_results_may_be_read_between_batches() -> None:
    model, x = CNN().eval(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch):
        model(x)
        assert watch.results()[0]["fc1"][Row.COUNT, 0] == 5
        model(x)
        assert watch.results()[0]["fc1"][Row.COUNT, 0] == 10


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_bad_activations_name_layer_and_batch(value: float) -> None:
    model, x = CNN().eval(), images(1)[0][0]
    watch = watched(model, x)
    with watching(model, watch), torch.no_grad():
        model(x)
        model.fc1.bias[3] = value
        model.fc1.register_forward_hook(lambda _, __, output: output + 0 * value)
        model(x)
        model(x)
    with pytest.raises(DataError, match=r"Layer 'fc1': NaN or Inf in the activations, first in batch 1"):
        watch.results()


def test_the_state_is_a_metric_that_merges() -> None:
    groups = list(discover(CNN(), images(1)[0][0]))
    one, other, both = Moments(groups), Moments(groups), Moments(groups)
    blocks = [{g.name: 1 + torch.rand(7, g.size, dtype=torch.float64) for g in groups} for _ in range(2)]
    one.update(blocks[0])
    other.update(blocks[1])
    both.update(blocks[0])
    both.update(blocks[1])
    one.merge_state(other)
    for name, expected in both.compute().items():
        torch.testing.assert_close(one.compute()[name], expected)


def _rank(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = CNN().eval()
    data = [torch.randn(size, 1, 8, 8) * scale for size, scale in ((5, 1), (2, 9))]
    watch = watched(model, data[0], covariance=True)
    with watching(model, watch), torch.no_grad():
        model(data[rank])
    blocks, covariance = watch.results()
    torch.save((blocks, {k: torch.from_numpy(v) for k, v in covariance.items()}), folder / f"{rank}.pt")


def test_ranks_add_up_to_one_process(tmp_path: Path) -> None:
    on_ranks(_rank, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.manual_seed(0)
    model = CNN().eval()
    data = [torch.randn(size, 1, 8, 8) * scale for size, scale in ((5, 1), (2, 9))]
    watch = watched(model, data[0], covariance=True)
    with watching(model, watch), torch.no_grad():
        for x in data:
            model(x)
    blocks, covariance = watch.results()
    for found_blocks, found_covariance in ranks:
        for name, expected in blocks.items():
            torch.testing.assert_close(found_blocks[name], expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found_covariance[name], torch.from_numpy(covariance[name]))
