"""Products: sliced against masked for every way to write one, and what they leave alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact, masked_outputs, sliced
from tests.tracker.samples import Sample, between, convolved, image, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F

from tracker import NeuronMap, discover


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


@pytest.mark.parametrize(
    ("compute", "weight", "x"),
    [
        (lambda m, h: h @ m.w, parameter(8, 3), (4, 6)),
        (lambda m, h: (m.w @ h.T).T, parameter(3, 8), (4, 6)),
        (lambda m, h: F.linear(h, m.w), parameter(3, 8), (2, 4, 6)),
        (lambda m, h: torch.addmm(torch.ones(4, 3, dtype=h.dtype), h, m.w), parameter(8, 3), (4, 6)),
        (lambda m, h: h @ m.w, parameter(8), (4, 6)),
        (lambda m, h: m.w @ h, parameter(3, 8), (6,)),
        (lambda m, h: torch.dot(m.w, h), parameter(8), (6,)),
        (lambda m, h: torch.einsum("btc,co->bto", h, m.w), parameter(8, 3), (2, 4, 6)),
        (lambda m, h: torch.einsum("bc,ec->be", h, m.w.exp() - 1), parameter(3, 8), (4, 6)),
        (lambda m, h: torch.bmm(h, m.w.expand(2, -1, -1)), parameter(8, 3), (2, 4, 6)),
        (lambda m, h: torch.baddbmm(h.new_ones(2, 4, 3), h, m.w.expand(2, -1, -1)), parameter(8, 3), (2, 4, 6)),
        (lambda m, h: torch.tensordot(h, m.w, dims=([1], [0])), parameter(8, 3), (4, 6)),
    ],
    ids="mm mm_left linear addmm mv mv_left dot einsum einsum_computed bmm baddbmm tensordot".split(),
)  # fmt: skip
def test_a_raw_parameter_reads_neurons(
    compute: Callable[..., Tensor], weight: nn.Parameter, x: tuple[int, ...]
) -> None:
    model = Sample(lambda m, x: compute(m, F.relu(m.a(x))), a=nn.Linear(6, 8), w=weight)
    found = check_exact(model, torch.randn(*x), groups=["a"])
    assert sizes(found) == {"a": 8}
    (read,) = found["a"].reads
    assert read.parameter == "w"
    assert read.how in ("operator", "computed")


def test_two_readers_are_both_found() -> None:
    model = Sample(
        lambda m, x: m.w @ F.relu(m.a(x)) + m.b(m.a(x)), a=nn.Linear(6, 8), w=parameter(3, 8), b=nn.Linear(8, 3)
    )
    found = check_exact(model, torch.randn(6), groups=["a"])
    assert {site.parameter for site in found["a"].consumers} == {"w", "b.weight"}


def test_a_low_rank_weight_has_neurons_inside() -> None:
    model = Sample(lambda m, x: F.linear(m.a(x), m.u @ m.v), a=nn.Linear(6, 8), u=parameter(3, 5), v=parameter(5, 8))
    assert sizes(check_exact(model, rows())) == {"u": 5, "a": 8}


def test_heads_of_a_three_dimensional_weight() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (m.heads, -1)) for part in (m.q, m.k, m.v))
        mixed = torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1), v)
        result: Tensor = torch.einsum("bqhd,hde->bqe", mixed, m.w) + m.also(mixed.flatten(2))
        return result

    parts = {name: nn.Linear(6, 12) for name in "qkv"}
    model = Sample(compute, **parts, w=parameter(4, 3, 6), also=nn.Linear(12, 6), heads=4)
    found = check_exact(model, torch.randn(2, 5, 6), groups=["q"])
    assert found["q"].size == 4
    assert {("w", 0), ("also.weight", 1)} == set(found["q"].consumers)


def test_two_activations_multiplied_keep_their_width() -> None:
    model = Sample(lambda m, x: m.a(x) @ m.c(x).T, a=nn.Linear(6, 8), c=nn.Linear(6, 8))
    found = check_exact(model, rows())
    assert not len(found)
    assert "contracted with another activation" in reason(found, "a")


def test_a_constant_that_reads_neurons_keeps_them() -> None:
    found = check_exact(between(lambda m, h: h @ torch.eye(8, dtype=h.dtype)), rows())
    assert not len(found)
    assert "reads an axis without neurons" in reason(found, "a")


def test_activations_written_into_a_buffer_are_no_weight() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        kept = torch.zeros(4, m.width, dtype=x.dtype)
        kept[:, :] = m.a(x)
        result: Tensor = m.b(kept) + (m.q(x) @ kept.T).sum()
        return result

    model = Sample(compute, a=nn.Linear(6, 8), q=nn.Linear(6, 8), b=nn.Linear(8, 3), width=8)
    found = check_exact(model, rows())
    assert "contracted with another activation" in reason(found, "a")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)], {"0": 8}),
        ([nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="same")], {"0": 8}),
        ([nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)], {"0": 8}),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 1)], {"0": 4}),
        ([nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 4, 1)], {"0": 4, "2": 3}),
        ([nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 4, 1)], {"0": 8, "2": 6}),
        ([nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Conv2d(6, 4, 1)], {"0": 4, "2": 3}),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 8, 2, groups=4), nn.Conv2d(8, 4, 1)], {"0": 4}),
        ([nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=4), nn.Conv2d(4, 4, 1)], {"0": 4}),
    ],
    ids="plain same depthwise multiplier grouped transposed transposed_grouped transposed_multiplier "
    "transposed_depthwise".split(),
)  # fmt: skip
def test_convolutions(layers: list[nn.Module], expected: dict[str, int]) -> None:
    assert sizes(check_exact(nn.Sequential(*layers), image())) == expected


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_dimensions(dims: int) -> None:
    conv = nn.Conv1d if dims == 1 else nn.Conv3d
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 2, 1))
    assert sizes(check_exact(model, torch.randn(2, 3, *[6] * dims))) == {"0": 8}
    assert sizes(check_exact(model, torch.randn(3, *[6] * dims))) == {"0": 8}  # without a batch


def test_a_convolution_over_heads_folded_into_the_batch() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = m.a(x).view(batch, tokens, m.heads, -1).permute(0, 2, 3, 1).reshape(batch * m.heads, -1, tokens)
        result: Tensor = m.b(m.c(h).reshape(batch, -1, tokens).transpose(1, 2))
        return result

    model = Sample(compute, a=nn.Linear(6, 12), c=nn.Conv1d(4, 5, 3, padding=1), b=nn.Linear(15, 3), heads=3)
    assert sizes(check_exact(model, torch.randn(2, 7, 6))) == {"a": 4, "c": 5}


@pytest.mark.parametrize(
    ("compute", "parts", "why"),
    [
        (lambda m, h: F.conv2d(h, torch.ones(8, 1, 3, 3).to(h), groups=m.n), {"n": 8}, "a kernel without neurons"),
        (lambda m, h: F.conv2d(h, m.w, groups=8), {"w": parameter(8, 1, 3, 3)}, "constant number of groups"),
        (lambda m, h: F.conv2d(h, m.w * h.mean(), groups=2), {"w": parameter(8, 4, 1, 1)}, "with another activation"),
        (lambda m, h: F.conv2d(h, m.w * h.mean()), {"w": parameter(8, 8, 1, 1)}, "with another activation"),
        (lambda m, h: F.conv1d(h.flatten(2).transpose(1, 2), m.w, padding=1).mT[..., None].expand(-1, -1, -1, 8),
         {"w": parameter(6, 64, 3)}, "convolved over"),
    ],
    ids="constant_kernel constant_groups dynamic_grouped dynamic spatial".split(),
)  # fmt: skip
def test_convolutions_that_keep_their_channels(compute: Callable[..., Tensor], parts: dict[str, Any], why: str) -> None:
    found = check_exact(convolved(compute, **parts), image())
    assert "a" not in sizes(found)
    assert why in reason(found, "a")


def test_grouped_convolutions_of_the_input_keep_their_rows() -> None:
    found = check_exact(nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)), image())
    assert "without neurons in groups" in reason(found, "0")


class Attention(nn.Module):
    """Four query heads; `key_heads` of keys and values."""

    def __init__(self, key_heads: int = 4, **options: Any) -> None:
        super().__init__()
        self.heads, self.key_heads, self.options = 4, key_heads, options
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 3 * key_heads), nn.Linear(6, 3 * key_heads)
        self.o = nn.Linear(12, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2) for part in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, **self.options)
        result: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return result


@pytest.mark.parametrize(
    ("key_heads", "options", "heads"), [(4, {}, 4), (4, {"is_causal": True}, 4), (2, {"enable_gqa": True}, 2)]
)
def test_heads_of_fused_attention(key_heads: int, options: dict[str, Any], heads: int) -> None:
    found = check_exact(Attention(key_heads, **options), torch.randn(2, 5, 6), groups=["q"])
    assert (found["q"].size, found["q"].kind) == (heads, "attention")
    assert found["k"] is found["v"] is found["q"]
    follows = {integer.path: dict(integer.follows) for integer in found.integers}
    assert follows["key_heads",] == {"q": 1}
    assert follows["heads",] == {"q": 4 // heads}


def test_a_mask_for_all_heads_leaves_them_be() -> None:
    assert check_exact(Attention(), torch.randn(2, 5, 6), torch.randn(5, 5), groups=["q"])["q"].size == 4


def test_a_mask_of_each_head_keeps_them() -> None:
    found = check_exact(Attention(), torch.randn(2, 5, 6), torch.randn(2, 4, 5, 5))
    assert "bias without heads" in reason(found, "q")


def test_a_learned_bias_of_each_head_goes_with_it() -> None:
    model = Sample(lambda m, x: m.attention(x, m.bias), attention=Attention(), bias=parameter(4, 5, 5))
    found = check_exact(model, torch.randn(2, 5, 6), groups=["attention.q"])
    assert ("bias", 0) in found["attention.q"].members


def test_experts_chosen_by_a_batched_product_are_neurons() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("bc,eco->beo", x, m.up))
        result: Tensor = torch.einsum("beo,eof->bf", hidden, m.down)
        return result

    found = check_exact(Sample(compute, up=parameter(4, 6, 5), down=parameter(4, 5, 3)), rows())
    assert sum(sizes(found).values()) >= 4


def test_channels_with_a_matrix_each_are_no_experts() -> None:
    def states(m: Any, x: Tensor) -> Tensor:  # as in a diagonal state space
        hidden = torch.bmm(torch.bmm(m.inp(x).T.unsqueeze(-1), m.b), m.c).squeeze(-1)
        result: Tensor = m.out(hidden.T)
        return result

    channels = Sample(states, inp=nn.Linear(8, 6), b=parameter(6, 1, 4), c=parameter(6, 4, 1), out=nn.Linear(6, 3))
    found = check_exact(channels, torch.randn(5, 8), groups=["inp", "b"])
    assert {group.kind for group in found} == {"mlp"}


def test_a_bilinear_layer_reads_both_its_inputs() -> None:
    model = Sample(
        lambda m, x: m.b(F.relu(m.a(x)), m.c(x)), a=nn.Linear(6, 8), c=nn.Linear(6, 5), b=nn.Bilinear(8, 5, 3)
    )
    found = check_exact(model, rows(), groups=["a", "c"])
    assert sizes(found) == {"a": 8, "c": 5}
    assert [found[name].consumers for name in "ac"] == [(("b.weight", 1),), (("b.weight", 2),)]


@pytest.mark.parametrize(
    ("compute", "parts", "expected"),
    [
        (lambda m, h: torch.addmv(m.bias, m.w, h), {"w": parameter(3, 8), "bias": parameter(3)}, {"a": 8}),
        (lambda m, h: m.b(torch.addr(m.w, h, m.v).T), {"w": parameter(8, 5), "v": parameter(5), "b": nn.Linear(8, 3)},
         {"a": 8}),
        (lambda m, h: m.b(torch.outer(m.v, h)), {"v": parameter(5), "b": nn.Linear(8, 3)}, {"a": 8}),
        (lambda m, h: m.b(torch.kron(h[None], h.new_ones(1, 2))), {"b": nn.Linear(16, 3)}, {"a": 8}),
    ],
    ids="addmv addr outer kron".split(),
)  # fmt: skip
def test_products_of_vectors(compute: Callable[..., Tensor], parts: dict[str, Any], expected: dict[str, int]) -> None:
    model = Sample(lambda m, x: compute(m, m.a(x).sigmoid()), a=nn.Linear(6, 8), **parts)
    assert sizes(check_exact(model, torch.randn(6))) == expected


def test_a_sum_of_batches_of_products() -> None:
    model = Sample(
        lambda m, x: m.b(torch.addbmm(m.w.new_zeros(4, 5), F.relu(m.a(x)).expand(2, -1, -1), m.w)),
        a=nn.Linear(6, 8), w=parameter(2, 8, 5), b=nn.Linear(5, 3),
    )  # fmt: skip
    assert sizes(check_exact(model, rows()))["a"] == 8


def test_distances_are_made_by_all_neurons_together() -> None:
    found = check_exact(Sample(lambda m, x: m.b(torch.cdist(m.a(x), m.w)), a=nn.Linear(6, 8), w=parameter(5, 8),
                               b=nn.Linear(5, 3)), rows())  # fmt: skip
    assert "distance together" in reason(found, "a")
    assert sizes(found) == {"w": 5}


def test_bags_of_rows_write_neurons() -> None:
    ids = torch.randint(0, 9, (2, 4))
    for mode in ("sum", "mean", "max"):
        model = Sample(lambda m, ids: m.b(m.a(ids)), a=nn.EmbeddingBag(9, 8, mode=mode), b=nn.Linear(8, 3))
        assert sizes(check_exact(model, ids)) == {"a": 8}


class Experts(nn.Module):
    """Four experts, each with rows of its own; `width` neurons in each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = parameter(4, 16, width), parameter(4, width, 16)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return torch._grouped_mm(F.relu(torch._grouped_mm(x, self.up, offs=ends)), self.down, offs=ends)


def test_neurons_of_experts_in_grouped_products_go_by_eights() -> None:
    model, x, ends = Experts(32), torch.randn(12, 16), torch.tensor([3, 6, 9, 12], dtype=torch.int32)
    found = discover(model, (x, ends))
    assert [(group.name, group.size, group.exact, group.multiple) for group in found] == [("up", 32, True, 8)]
    gone = [*range(5), *range(20, 31)]
    small, deaf = sliced(model, found, {"up": gone}), masked_outputs(model, found, {"up": gone}, (x, ends), {})
    torch.testing.assert_close([small(x, ends)], deaf)
    assert NeuronMap.from_json(found.to_json())["up"].multiple == 8


def test_attention_over_channels_has_heads() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, m.heads, -1)).permute(2, 0, 3, 4, 1).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.temperature
        result: Tensor = m.out((scores.softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))
        return result

    model = Sample(compute, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6), temperature=parameter(4, 1, 1), heads=4)
    assert sizes(check_exact(model, torch.randn(2, 5, 6))) == {"qkv": 4}


def test_heads_that_talk_are_mixed_by_a_layer() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, m.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = m.before((q @ k.mT).permute(0, 2, 3, 1)).softmax(2)
        result: Tensor = m.out((m.after(scores).permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2))
        return result

    model = Sample(
        compute, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6), before=nn.Linear(4, 4), after=nn.Linear(4, 4), heads=4
    )
    found = sizes(check_exact(model, torch.randn(2, 5, 6)))
    assert found["qkv"] == found["before"] == 4


def test_a_selective_scan_in_a_loop() -> None:
    class Scan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.states = 8, 4
            self.enter, self.leave = nn.Linear(6, 16, bias=False), nn.Linear(8, 6)
            self.conv, self.x, self.dt = nn.Conv1d(8, 8, 3, groups=8, padding=2), nn.Linear(8, 10), nn.Linear(2, 8)
            self.a, self.d = parameter(8, 4), parameter(8)

        def forward(self, x: Tensor) -> Tensor:
            batch, steps, _ = x.shape
            u, gate = self.enter(x).chunk(2, -1)
            u = F.silu(self.conv(u.mT)[..., :steps].mT)
            dt, write, read = self.x(u).split([2, self.states, self.states], -1)
            dt = F.softplus(self.dt(dt))
            decay = torch.exp(-torch.einsum("bld,dn->bldn", dt, self.a.exp()))
            enter = torch.einsum("bld,bln,bld->bldn", dt, write, u)
            state, out = x.new_zeros(batch, self.inner, self.states), []
            for step in range(steps):
                state = decay[:, step] * state + enter[:, step]
                out.append(torch.einsum("bdn,bn->bd", state, read[:, step]))
            result: Tensor = self.leave((torch.stack(out, 1) + u * self.d) * F.silu(gate))
            return result

    assert sizes(check_exact(Scan(), torch.randn(2, 5, 6)))["enter"] == 8
