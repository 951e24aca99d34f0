"""What changes which fingerprint of a model."""

import pytest
import torch
from torch import nn

from tracker import content_fingerprint, structure_fingerprint


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def test_training_changes_the_content_alone() -> None:
    one, other = model(), model()
    assert structure_fingerprint(one) == structure_fingerprint(other)
    assert content_fingerprint(one) == content_fingerprint(other)
    with torch.no_grad():
        other.get_parameter("0.bias")[3] += 1e-6
    assert structure_fingerprint(one) == structure_fingerprint(other)
    assert content_fingerprint(one) != content_fingerprint(other)


def test_buffers_and_dtypes_are_content() -> None:
    prints = {
        content_fingerprint(model()),
        content_fingerprint(model().double()),
        content_fingerprint(model().bfloat16()),
    }
    changed = model()
    changed.get_buffer("1.running_mean").add_(1)
    assert len({*prints, content_fingerprint(changed)}) == 4


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)),
        nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2)),
        nn.ModuleList([nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)]),
    ],
    ids=["width", "parameters", "class"],
)
def test_widths_names_and_class_are_structure(other: nn.Module) -> None:
    assert structure_fingerprint(other) != structure_fingerprint(model())


def test_wrappers_and_devices_do_not_count() -> None:
    compiled = nn.Module()
    compiled._orig_mod = model()  # as torch.compile wraps
    assert structure_fingerprint(compiled) == structure_fingerprint(model().to("meta"))
    assert len(structure_fingerprint(model())) == 16


def test_buffers_that_are_made_anew_do_not_count() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("positions", torch.zeros(1), persistent=False)
    before = structure_fingerprint(model), content_fingerprint(model)
    model.positions = torch.zeros(5)
    assert (structure_fingerprint(model), content_fingerprint(model)) == before
