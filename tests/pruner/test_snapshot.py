import sys

import pytest
import torch
from tests.pruner.before_and_after import Interrupter, everything
from torch import nn

from pruner.snapshot import Snapshot


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_without_a_commit_everything_is_put_back():
    layers = model()
    before = everything(layers)
    with Snapshot() as snapshot:
        snapshot.replace(layers[0].weight, torch.zeros(1, 3))
        snapshot.replace(layers[0].weight, torch.zeros(1, 1))
        assert layers[0].weight.shape == (1, 1)
    assert everything(layers) == before


def test_with_a_commit_the_changes_stay_and_the_objects_are_the_same():
    layers = model()
    weight = layers[0].weight
    with Snapshot() as snapshot:
        snapshot.replace(weight, torch.zeros(1, 3))
        snapshot.commit()
    assert layers[0].weight is weight
    assert torch.equal(weight, torch.zeros(1, 3))


def test_the_old_storage_is_kept_and_not_copied():
    layers = model()
    place = layers[0].weight.data_ptr()
    with Snapshot() as snapshot:
        snapshot.replace(layers[0].weight, torch.zeros(1, 3))
        assert layers[0].weight.data_ptr() != place
    assert layers[0].weight.data_ptr() == place


def test_attributes_come_back_and_new_ones_go():
    layers = model()
    with Snapshot() as snapshot:
        for name in ("out_features", "new_attribute"):
            snapshot.hold(layers[0], name)
            vars(layers[0])[name] = 1
    assert layers[0].out_features == 4
    assert not hasattr(layers[0], "new_attribute")


def test_an_interrupt_that_strikes_while_undoing_is_obeyed_afterwards():
    layers = model()
    before = everything(layers)
    tracing = sys.gettrace()

    def undo() -> None:
        with Snapshot() as snapshot:
            snapshot.replace(layers[0].weight, torch.zeros(1, 3))
            sys.settrace(Interrupter(5, ("pruner/snapshot.py",)))

    try:
        with pytest.raises(KeyboardInterrupt):
            undo()
    finally:
        sys.settrace(tracing)
    assert everything(layers) == before


def change_and_fail(model: nn.Sequential, interrupter: Interrupter) -> None:
    """Change a model within a snapshot and fail, with the interrupter on watch from there."""
    with Snapshot() as snapshot, snapshot:
        for parameter in model.parameters():
            snapshot.replace(parameter, parameter.data[:1])
        for name in ("out_features", "new_attribute"):
            snapshot.hold(model[0], name)
            vars(model[0])[name] = 1
        sys.settrace(interrupter)
        raise MemoryError


def test_an_interrupt_of_the_undoing_does_no_harm():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = everything(model)
    tracing = sys.gettrace()
    places = []
    while True:
        interrupter = Interrupter(len(places) + 1, ("pruner/snapshot.py",))
        try:
            with pytest.raises((MemoryError, KeyboardInterrupt)):
                change_and_fail(model, interrupter)
        finally:
            sys.settrace(tracing)
        assert everything(model) == before
        if interrupter.left > 0:
            break
        places.append(interrupter.at)
    assert {"__exit__", "restore", "_give"} == set(places)
