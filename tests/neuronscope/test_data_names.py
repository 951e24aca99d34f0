import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from neuronscope.data_names import digits, load_data
from tracker.errors import DataError, MissingExtraError


@pytest.fixture
def my_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


def test_a_callable_is_called_for_its_batches(my_data: Any) -> None:
    batches = [torch.zeros(2, 3)]
    my_data.loader = lambda: batches
    assert load_data("my_data:loader") is batches


def test_what_is_iterable_already_is_taken_as_it_is(my_data: Any) -> None:
    my_data.batches = [torch.zeros(2, 3)]
    assert load_data("my_data:batches") is my_data.batches


def test_data_that_can_be_read_only_once_is_refused(my_data: Any) -> None:
    def stream() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 3)

    my_data.stream = stream
    my_data.number = lambda: 3
    with pytest.raises(DataError, match=r"'my_data:stream' gave a generator.*Return a DataLoader"):
        load_data("my_data:stream")
    with pytest.raises(DataError, match="gave a int"):
        load_data("my_data:number")


def test_a_name_that_leads_nowhere_says_how_names_look() -> None:
    with pytest.raises(DataError, match="module:callable"):
        load_data("digit")


def test_digits_are_split_once_and_for_all_and_hold_every_class() -> None:
    train, test = digits(batch_size=2000)
    images, labels = next(iter(train))
    held_out, held_out_labels = next(iter(test))
    assert images.shape == (1437, 1, 8, 8)
    assert held_out.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert labels.dtype == torch.int64
    assert held_out_labels.bincount().min() >= 34
    assert not {image.numpy().tobytes() for image in images} & {image.numpy().tobytes() for image in held_out}
    again, again_labels = next(iter(load_data("digits-test")))
    assert torch.equal(again, held_out[: len(again)])
    assert torch.equal(again_labels, held_out_labels[: len(again)])


def test_the_two_names_are_the_two_halves() -> None:
    assert sum(len(labels) for _, labels in load_data("digits")) == 1437
    assert sum(len(labels) for _, labels in load_data("digits-test")) == 360


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[demo\]"):
        load_data("digits")
