import random
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from tests.tracker.watched_models import CNN, Encoder, images, sentences
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tracker.batches import Batch, accuracy, as_batch, evaluating, forward, iter_batches, logits
from tracker.errors import DataError


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(left + right)


class TakesFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.layer(features["x"])


class TakesAnything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.layer(args[0] if args else kwargs["x"])


X, Y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
LINEAR = nn.Linear(3, 2)


def test_a_tensor_is_the_input() -> None:
    batch = as_batch(X, LINEAR)
    assert len(batch.args) == 1
    assert batch.args[0] is X
    assert batch.target is None


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_is_input_and_target(kind: type) -> None:
    batch = as_batch(kind((X, Y)), LINEAR)
    assert len(batch.args) == 1
    assert batch.target is Y


def test_a_pair_is_two_inputs_where_the_model_needs_two() -> None:
    batch = as_batch((X, X), TwoInputs())
    assert len(batch.args) == 2
    assert batch.target is None


def test_of_three_all_but_the_last_are_inputs_where_the_model_takes_them() -> None:
    batch = as_batch((X, X, Y), TwoInputs())
    assert len(batch.args) == 2
    assert batch.target is Y
    assert len(as_batch((X, Y, torch.arange(4)), LINEAR).args) == 1


def test_a_mapping_holds_keyword_arguments_and_labels() -> None:
    given = {**sentences(1)[0], "labels": torch.zeros(4, dtype=torch.int64)}
    batch = as_batch(UserDict(given), Encoder())
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}
    assert batch.target is not None
    assert batch.mask is not None
    assert torch.equal(batch.mask, given["attention_mask"].bool())


def test_a_batch_encoding_is_a_mapping() -> None:
    transformers = pytest.importorskip("transformers")
    batch = as_batch(transformers.BatchEncoding(sentences(1)[0]), Encoder())
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}


def test_a_mapping_with_its_labels_beside_it() -> None:
    batch = as_batch((sentences(1)[0], Y), Encoder())
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}
    assert batch.target is Y


def test_labels_stay_where_the_forward_takes_them() -> None:
    class WithLabels(Encoder):
        def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids, attention_mask)

    batch = as_batch({**sentences(1)[0], "labels": Y}, WithLabels())
    assert "labels" in batch.kwargs
    assert batch.target is not None


def test_a_mapping_may_be_the_one_argument_itself() -> None:
    batch = as_batch({"x": X}, TakesFeatures())
    assert batch.kwargs == {}
    assert forward(TakesFeatures(), batch).shape == (4, 2)


def test_a_forward_that_takes_anything() -> None:
    model = TakesAnything()
    assert forward(model, as_batch((X, Y), model)).shape == (4, 2)
    assert forward(model, as_batch({"x": X}, model)).shape == (4, 2)


def test_a_key_the_forward_does_not_take_is_named() -> None:
    with pytest.raises(DataError, match=r"does not take the key 'input_idx'. Did you mean 'input_ids'\?.*Leave it out"):
        as_batch({"input_idx": Y}, Encoder())


def test_floating_inputs_get_the_model_s_dtype_and_integers_stay() -> None:
    model = CNN().bfloat16()
    batch = as_batch(images(1)[0], model)
    assert batch.args[0].dtype == torch.bfloat16
    assert as_batch(sentences(1)[0], Encoder().bfloat16()).kwargs["input_ids"].dtype == torch.int64


@pytest.mark.gpu
def test_batches_follow_the_model_to_its_device() -> None:
    batch = as_batch(images(1)[0], CNN().to("cuda"))
    assert batch.args[0].is_cuda
    assert batch.target is not None
    assert batch.target.is_cuda


@pytest.mark.parametrize("bad", ["text", ["some", "text"], 3, None, (), [], (X, "label"), b"bytes", [np.ones(3)]])
def test_unknown_types_are_named(bad: Any) -> None:
    with pytest.raises(DataError, match=r"Batch 1: It is .*Make every batch a tensor"):
        list(iter_batches([X, bad], LINEAR))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_numbers_are_found_in_the_batch_that_has_them(value: float) -> None:
    bad = X.clone()
    bad[1, 2] = value
    with pytest.raises(DataError, match=r"Batch 2: input 0 holds 1 values that are NaN or Inf, of 12"):
        list(iter_batches([X, X, (bad, Y)], LINEAR))
    with pytest.raises(DataError, match=r"Batch 0: x holds 1 values"):
        list(iter_batches([{"x": bad}], TakesFeatures()))


@pytest.mark.parametrize("empty", [[], (), iter([]), DataLoader(TensorDataset(X[:0]), batch_size=2)])
def test_an_empty_loader_is_an_error(empty: Any) -> None:
    with pytest.raises(DataError, match="The data loader is empty"):
        list(iter_batches(empty, LINEAR))


@pytest.mark.parametrize("wrong", [X, "data", {"x": X}, 5])
def test_what_is_no_loader_is_an_error(wrong: Any) -> None:
    with pytest.raises(DataError, match="not a series of batches"):
        list(iter_batches(wrong, LINEAR))


def test_a_model_without_weights_is_an_error() -> None:
    with pytest.raises(DataError, match="meta device"):
        as_batch(X, nn.Linear(3, 2, device="meta"))


def test_a_shuffling_loader_shuffles_as_if_nothing_had_happened() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(torch.arange(12.0)[:, None].expand(12, 3)), shuffle=True, generator=generator)
    before = generator.get_state()
    list(iter_batches(loader, LINEAR))
    assert torch.equal(generator.get_state(), before)


def test_evaluating_leaves_no_trace() -> None:
    model = CNN()
    model.conv1.eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            torch.rand(3), random.random(), np.random.rand()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert torch.is_grad_enabled()


def test_logits_are_found_in_every_kind_of_output() -> None:
    class Output:
        last_hidden_state = X

    assert logits(X) is X
    assert logits((X, Y)) is X
    assert logits({"loss": Y, "logits": X}) is X
    assert logits(Output()) is X
    assert logits({"a": 1, "b": X}) is X
    with pytest.raises(DataError, match="no tensor was found"):
        logits(None)


def test_accuracy() -> None:
    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    right = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert accuracy(Copy(), [(right, torch.tensor([0, 1, 2, 1])), (right, torch.tensor([0, 1, 2, 0]))]) == 7 / 8
    tokens = right[None]
    assert accuracy(Copy(), [(tokens, torch.tensor([[0, -100, 1, -100]]))]) == 1 / 2
    speaks = type("CopyForCausalLM", (Copy,), {})()  # what is right at a token is the next one
    assert accuracy(speaks, [(tokens, torch.tensor([[5, 0, -100, 1]]))]) == 1 / 2
    assert accuracy(Copy(), [right]) is None
    assert accuracy(Copy(), [(right, torch.rand(4))]) is None
    assert accuracy(Copy(), [(right, torch.zeros(4, 3, dtype=torch.int64))]) is None


def test_a_batch_is_a_call() -> None:
    assert torch.equal(forward(LINEAR, Batch(args=(X,))), LINEAR(X))
