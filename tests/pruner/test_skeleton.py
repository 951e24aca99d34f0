import threading

import pytest
import torch
from tests.pruner.before_and_after import everything
from tests.pruner.small_models import CASES, TiedTransformer, case
from torch import nn

from pruner.skeleton import built_by, named_tensors, plain_tensors, skeleton
from tracker.errors import CheckpointError
from tracker.fingerprint import structure_fingerprint


@pytest.mark.parametrize("name", CASES)
def test_a_skeleton_has_the_shapes_and_no_weights(name):
    model, _ = case(name)
    before = everything(model)
    bones = skeleton(model)
    assert structure_fingerprint(bones) == structure_fingerprint(model)
    assert all(tensor.is_meta for _, tensor in named_tensors(bones))
    assert [t.dtype for _, t in named_tensors(bones)] == [t.dtype for _, t in named_tensors(model)]
    assert everything(model) == before


def test_a_skeleton_is_tied_and_shared_like_the_model():
    model, _ = case("transformer")
    bones = skeleton(model)
    assert bones.head.weight is bones.embed.weight
    assert bones.first is bones.second
    assert bones.first.pieces == (8, 8)


def test_plain_tensors_keep_their_values():
    model = nn.Linear(2, 2)
    model.table = {"rates": [torch.tensor([1.0, 2.0])]}
    model.left_over = model.weight * 2
    bones = skeleton(model)
    assert {name for name, _ in plain_tensors(bones)} == {"table", "left_over"}
    assert bones.table["rates"][0].tolist() == [1.0, 2.0]
    assert torch.equal(bones.left_over, model.weight * 2)


def test_what_cannot_be_copied_is_an_error_with_a_way_out():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(CheckpointError, match="Pass a callable that builds the model"):
        skeleton(model)


def test_models_are_built_without_memory_where_that_works():
    assert all(tensor.is_meta for _, tensor in named_tensors(built_by(TiedTransformer)))


def test_the_random_numbers_of_the_caller_are_left_alone():
    state = torch.get_rng_state()

    def build() -> nn.Module:
        model = nn.Linear(2, 2)
        model.plain = torch.randn(2)
        return model

    assert built_by(build).plain.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), state)
