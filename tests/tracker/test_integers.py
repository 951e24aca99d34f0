"""Integer attributes follow the neurons; sizes that the code turns into something else refuse them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F

from tracker import NeuronMap

BOTH = {"n": 3, "k": 5}


def follows(found: NeuronMap) -> dict[str, dict[str, int]]:
    """What every attribute follows, by the dotted path to it."""
    return {
        ".".join(map(str, (*filter(None, [integer.module]), *integer.path))): dict(integer.follows)
        for integer in found.integers
    }


def scaled(m: Any, part: Tensor, rest: Tensor) -> Tensor:
    """Two parts of unlike neurons, put together the other way round."""
    return torch.cat([rest, part * m.scale], 1)


@pytest.mark.parametrize(
    ("compute", "attributes", "expected"),
    [
        (lambda m, h: h.view(-1, m.n), {"n": 8}, {"n": {"a": 1}}),
        (lambda m, h: h.view(-1, m.n[1]), {"n": (4, 8)}, {"n.1": {"a": 1}}),
        (lambda m, h: h.view(-1, m.n["w"]), {"n": {"w": 8}}, {"n.w": {"a": 1}}),
        (lambda m, h: h.view(-1, 2 * m.n).view(-1, 2, m.n).transpose(1, 2).flatten(1), {"n": 4}, {"n": {"a": 1}}),
        (lambda m, h: h.view(-1, 2, m.n // 2).transpose(1, 2).flatten(1), {"n": 8}, {"n": {"a": 2}}),
        (lambda m, h: h.unflatten(1, (m.g, m.n // m.g)).mT.flatten(1), {"n": 8, "g": 2}, {"n": {"a": 2}}),
        (lambda m, h: scaled(m, *h.split([m.n, m.k], 1)), BOTH, {"n": {"a": 1}, "k": {"a[1]": 1}}),
        (lambda m, h: torch.cat(h.split(m.n, 1)[::-1], 1), {"n": 4}, {"n": {"a": 1}}),
        (lambda m, h: scaled(m, h[:, : m.n], h[:, m.n :]), {"n": 3}, {"n": {"a": 1}}),
        (lambda m, h: scaled(m, h[:, -m.n :], h[:, : -m.n]), {"n": 3}, {"n": {"a": 1}}),
        (lambda m, h: scaled(m, h.narrow(1, 0, m.n), h.narrow(1, m.n, m.k)), BOTH, {"n": {"a": 1}, "k": {"a[1]": 1}}),
        (lambda m, h: h + torch.zeros(m.n, dtype=h.dtype), {"n": 8}, {"n": {"a": 1}}),
        (lambda m, h: h + h.new_ones(1, 1).expand(-1, m.n), {"n": 8}, {"n": {"a": 1}}),
        (lambda m, h: h if h.shape[1] == m.n else h * 2, {"n": 8}, {"n": {"a": 1}}),
    ],
    ids="view tuple dict times divided unflatten sections pieces slice end narrow zeros expand compared".split(),
)  # fmt: skip
def test_attributes_that_name_a_size(
    compute: Callable[..., Tensor], attributes: dict[str, Any], expected: dict[str, dict[str, int]]
) -> None:
    scale = nn.Parameter(torch.randn(3))
    found = check_exact(between(lambda m, h: compute(m, F.relu(h)), scale=scale, **attributes), rows())
    assert {name: f for name, f in follows(found).items() if name.partition(".")[0] in attributes} == expected


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda m, h: h / math.sqrt(h.shape[1]), "used as a number at test_integers.py"),
        (lambda m, h: h * h.shape[1] ** -0.5, "used as a number"),
        (lambda m, h: h / h.size(1), "used as a number"),
        (lambda m, h: h * h.shape[-1], "used as a number"),
        (lambda m, h: h / h.numel(), "used as a number"),
        (lambda m, h: h / torch.numel(h), "used as a number"),
        (lambda m, h: h * torch.tensor(h.shape[1]).rsqrt(), "used as a number"),
        (lambda m, h: h.view(-1, m.n) * m.n, "used as a number"),
        (lambda m, h: h * torch.full((), h.shape[1]), "used as a number"),
        (lambda m, h: h * m.table[h.shape[1]], "used as a number"),
        (lambda m, h: h * m.table[:: h.shape[1]].sum(), "used as a number"),
        (lambda m, h: h * m.table[: h.shape[1]].sum(), "used as a number"),
        (lambda m, h: h * m.table[:8][: h.shape[1]].sum(), "used as a number"),
        (lambda m, h: h * m.table.narrow(0, h.shape[1], 2).sum(), "used as a number"),
        (lambda m, h: h * m.table.index_fill(0, torch.tensor([0]), h.shape[1])[0], "used as a number"),
        (lambda m, h: h * -h.shape[1], "used as a number"),
        (lambda m, h: h * (1.0 / h.shape[1]), "a number follows its size at test_integers.py"),
        (lambda m, h: h * (0.5 * h.shape[1]), "a number follows its size"),
        (lambda m, h: h / np.sqrt(h.shape[1]), "a number follows its size"),
        (lambda m, h: h / math.log2(h.shape[1]), "a number follows its size"),
        (lambda m, h: h * int(h.shape[1]), "a number follows its size"),
        (lambda m, h: h / h.shape.numel(), "a number follows its size"),
        (lambda m, h: h * len(h[0]), "is counted by `len`"),
        (lambda m, h: h * 2 if h.shape[1] >= 8 else h, "compared with another number"),
        (lambda m, h: h * 2 if h.shape[1] == 5 else h, "compared with another number"),
        (lambda m, h: h * 2 if h.shape == m.c(h).shape else h, "compared with another number"),
    ],
)  # fmt: skip
def test_sizes_that_become_numbers_or_branches(compute: Callable[..., Tensor], why: str) -> None:
    parts: dict[str, Any] = {"c": nn.Linear(8, 5), "table": torch.randn(99)}
    found = check_exact(between(lambda m, h: compute(m, F.relu(h)), n=8, **parts), rows())
    assert "a" not in sizes(found)
    assert why in reason(found, "a")


def test_a_branch_that_never_turns_refuses_nothing() -> None:
    def compute(m: Any, h: Tensor) -> Tensor:
        if h.shape != F.relu(h).shape or h.shape[0] != 4 or h.shape[1] > m.limit or h.shape[1] % 1:
            raise ValueError("never")
        return h

    assert sizes(check_exact(between(compute, limit=100), rows())) == {"a": 8}


def test_a_slice_of_the_batch_is_not_mistaken_for_one_of_the_neurons() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.b(m.a(x)[: m.rows, :4])
        return result

    found = check_exact(Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(4, 3), rows=4), torch.randn(5, 6))
    assert "constant position 4" in reason(found, "a")
    assert "rows" not in follows(found)


def test_one_attribute_for_two_sizes_refuses_both() -> None:
    model = Sample(
        lambda m, x: m.b(m.a(x).view(-1, m.n)) + m.d(m.c(x).view(-1, m.n)),
        **{name: nn.Linear(6, 8) for name in "ac"}, **{name: nn.Linear(8, 3) for name in "bd"}, n=8,
    )  # fmt: skip
    found = check_exact(model, rows())
    assert not len(found)
    assert "`n` also gives the size of something else" in reason(found, "a")


def test_a_width_from_another_layer_must_follow() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x), m.c(x)
        result: Tensor = m.b(left.view(-1, right.shape[1] * 2)) + m.d(right)
        return result

    model = Sample(compute, a=nn.Linear(6, 8), c=nn.Linear(6, 4), b=nn.Linear(8, 3), d=nn.Linear(4, 3))
    found = check_exact(model, rows())
    assert sizes(found) == {"c": 4} or not len(found)
    assert "another width" in reason(found, "a")


def test_heads_and_their_key_heads_fall_together() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = m.q(x).view(batch, tokens, m.heads, m.head_dim).transpose(1, 2)
        k, v = (part(x).view(batch, tokens, m.kv_heads, -1).transpose(1, 2) for part in (m.k, m.v))
        copies = m.heads // m.kv_heads
        k, v = (part[:, :, None].expand(-1, -1, copies, -1, -1).flatten(1, 2) for part in (k, v))
        mixed = (q @ k.mT * m.head_dim**-0.5).softmax(-1) @ v
        result: Tensor = m.o(mixed.transpose(1, 2).reshape(batch, tokens, m.heads * m.head_dim))
        return result

    parts = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "o": nn.Linear(24, 6)}
    model = Sample(compute, **parts, heads=8, kv_heads=4, head_dim=3)
    found = check_exact(model, torch.randn(2, 5, 6))
    assert sizes(found) == {"q": 4}
    assert {"heads": {"q": 2}, "kv_heads": {"q": 1}}.items() <= follows(found).items()
    assert "head_dim" not in follows(found)
