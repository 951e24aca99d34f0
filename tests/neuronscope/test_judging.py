import pytest
import torch
from torch import nn

from neuronscope.judging import metric_of
from tracker.errors import DataError


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=random), torch.randint(3, (8,), generator=random)) for _ in range(2)]


def test_each_metric_is_what_it_says() -> None:
    model, data = classifier(), batches()
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        said = model(x)
    _, accuracy = metric_of("accuracy", model, data)
    assert accuracy(model) == pytest.approx(float((said.argmax(1) == y).float().mean()))
    _, loss = metric_of("loss", model, data)
    assert loss(model) == pytest.approx(-float(nn.functional.cross_entropy(said, y)))
    _, distance = metric_of("distance", model, data)
    assert distance(model) == 0
    with torch.no_grad():
        model.weight.add_(1)
    assert distance(model) < 0


def test_the_first_that_the_data_can_tell() -> None:
    model = classifier()
    assert metric_of(None, model, batches())[0] == "accuracy"
    assert metric_of(None, model, [(torch.randn(4, 4), torch.randn(4, 3))])[0] == "loss"
    assert metric_of(None, model, [torch.randn(4, 4)])[0] == "distance"


def test_your_own_and_what_is_none() -> None:
    assert metric_of("math:prod", classifier(), [])[1]([2, 3]) == 6  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no function"):
        metric_of("math:pi", classifier(), [])
    _, metric = metric_of("accuracy", classifier(), [torch.randn(4, 4)])
    with pytest.raises(DataError, match="no class indices"):
        metric(classifier())
