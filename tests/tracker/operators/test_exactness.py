"""Every rule: a small model through the operator, sliced against masked; or frozen, with the reason."""

from collections.abc import Callable

import pytest
import torch
from tests.tracker.equivalence import check_exact, check_runs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tracker import discover

Middle = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """(2, 5) → fc1 (2, 12) → something → fc2 → (2, 3)."""

    def __init__(self, middle: Middle, read: int = 12) -> None:
        super().__init__()
        self.fc1, self.fc2, self.middle = nn.Linear(5, 12), nn.Linear(read, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.middle(self.fc1(x)))
        return result


class AroundImage(nn.Module):
    """(2, 3, 8, 8) → conv1, 12 channels → something → conv2."""

    def __init__(self, middle: nn.Module | Middle, read: int = 12) -> None:
        super().__init__()
        self.conv1, self.conv2, self.middle = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(read, 2, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.middle(self.conv1(x)))
        return result


@pytest.mark.parametrize(
    ("middle", "read", "neurons"),
    [
        pytest.param(F.relu, 12, 12, id="relu"),
        pytest.param(F.hardswish, 12, 12, id="hardswish"),
        pytest.param(lambda x: F.relu_(x + 1), 12, 12, id="in place"),
        pytest.param(lambda x: x.clamp(-1, 1).where(x > 0, x * 2), 12, 12, id="where"),
        pytest.param(lambda x: x.view(2, -1, 1).transpose(1, 2).squeeze(1), 12, 12, id="views"),
        pytest.param(lambda x: x.reshape(2, 3, -1).permute(0, 2, 1).flatten(1), 12, 4, id="rectangle of a constant"),
        pytest.param(lambda x: torch.cat([x, -x], -1), 24, 12, id="cat"),
        pytest.param(lambda x: torch.stack([x, x * 2], -1).flatten(1), 24, 12, id="stack"),
        pytest.param(lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1], 6, 6, id="chunk"),
        pytest.param(lambda x: F.glu(x, -1), 6, 6, id="glu"),
        pytest.param(lambda x: x[:, : x.shape[-1] // 2], 6, 6, id="half of its own size"),
        pytest.param(lambda x: x[..., ::2] + x[..., 1::2], 6, 6, id="every other"),
        pytest.param(lambda x: x.flip(-1), 12, 12, id="flip"),
        pytest.param(lambda x: x.repeat(1, 2), 24, 12, id="repeat"),
        pytest.param(lambda x: x.unsqueeze(1).expand(-1, 3, -1).flatten(1), 36, 12, id="expand"),
        pytest.param(lambda x: x + torch.zeros_like(x), 12, 12, id="like another"),
        pytest.param(lambda x: x + torch.ones(x.shape[0], x.shape[1]), 12, 12, id="made to order"),
        pytest.param(lambda x: x.index_select(0, torch.tensor([1, 0])), 12, 12, id="rows by index"),
        pytest.param(lambda x: x[torch.tensor([1, 0, 0])], 12, 12, id="rows by advanced index"),
        pytest.param(lambda x: F.pad(x, (0, 0, 1, 1))[1:3], 12, 12, id="padded elsewhere"),
        pytest.param(lambda x: x - x.mean(0), 12, 12, id="mean over others"),
        pytest.param(lambda x: x.cumsum(0).softmax(0), 12, 12, id="along others"),
        pytest.param(lambda x: torch.einsum("bi,bi->bi", x, x), 12, 12, id="einsum"),
    ],
)  # fmt: skip
def test_neurons_pass(middle: Middle, read: int, neurons: int) -> None:
    found = check_exact(Around(middle, read), torch.randn(2, 5), groups=["fc1"])
    assert found["fc1"].size == neurons


@pytest.mark.parametrize(
    ("middle", "read", "reason"),
    [
        pytest.param(lambda x: x[:, :7], 7, "constant position 7", id="slice"),
        pytest.param(lambda x: x[:, 2:3].expand(-1, 12), 12, "constant position", id="one of them"),
        pytest.param(lambda x: x.view(2, 12), 12, "constant size 12", id="constant view"),
        pytest.param(lambda x: x.split(4, -1)[1], 4, "constant size 4", id="constant split"),
        pytest.param(lambda x: x.roll(1, -1), 12, "is rolled", id="roll"),
        pytest.param(lambda x: x.softmax(-1), 12, "turned into a distribution", id="softmax"),
        pytest.param(lambda x: x.cumsum(-1), 12, "summed up along", id="cumsum"),
        pytest.param(lambda x: x.sort(-1).values, 12, "is sorted", id="sort"),
        pytest.param(lambda x: x.topk(3, -1).values, 3, "largest entries", id="topk"),
        pytest.param(lambda x: F.pad(x, (0, 1)), 13, "is padded", id="pad"),
        pytest.param(lambda x: x + torch.arange(12.0), 12, "without neurons", id="a constant vector"),
        pytest.param(lambda x: x[:, torch.tensor([3, 1, 2])], 3, "by index", id="index"),
        pytest.param(lambda x: x.gather(1, torch.zeros(2, 4, dtype=torch.long)), 4, "by index", id="gather"),
        pytest.param(lambda x: x * x.shape[-1] ** -0.5, 12, "as a number", id="scale"),
        pytest.param(lambda x: x.renorm(2, 0, 1.0), 12, "no rule", id="no rule"),
    ],
)  # fmt: skip
def test_neurons_stay_with_a_reason(middle: Middle, read: int, reason: str) -> None:
    found = discover(Around(middle, read), torch.randn(2, 5))
    reasons = [entry.reason for entry in found.frozen if entry.name == "fc1"]
    assert "fc1" not in [group.name for group in found if group.exact]
    assert any(reason in said for said in reasons), reasons


@pytest.mark.parametrize(
    ("middle", "read", "neurons"),
    [
        pytest.param(nn.BatchNorm2d(12), 12, 12, id="batch norm"),
        pytest.param(nn.InstanceNorm2d(12, affine=True), 12, 12, id="instance norm"),
        pytest.param(nn.GroupNorm(12, 12), 12, 12, id="a group a channel"),
        pytest.param(nn.Conv2d(12, 12, 3, padding=1, groups=12), 12, 12, id="depthwise"),
        pytest.param(nn.Conv2d(12, 24, 3, padding=1, groups=12), 24, 12, id="depthwise multiplier"),
        pytest.param(nn.Conv2d(12, 8, 3, padding=1, groups=4), 8, 3, id="grouped"),
        pytest.param(nn.ConvTranspose2d(12, 8, 2, stride=2), 8, 12, id="transposed"),
        pytest.param(nn.ConvTranspose2d(12, 8, 2, stride=2, groups=2), 8, 6, id="transposed in groups"),
        pytest.param(nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12), 12, 12, id="transposed depthwise"),
        pytest.param(nn.MaxPool2d(2), 12, 12, id="max pool"),
        pytest.param(nn.AdaptiveAvgPool2d(2), 12, 12, id="adaptive pool"),
        pytest.param(nn.Upsample(scale_factor=2, mode="bilinear"), 12, 12, id="upsample"),
        pytest.param(nn.ReflectionPad2d(1), 12, 12, id="reflect"),
        pytest.param(nn.PReLU(12), 12, 12, id="prelu"),
        pytest.param(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 12, 12, id="gate"),
        pytest.param(nn.GroupNorm(12, 12), 12, 12, id="group norm of one each"),
        pytest.param(nn.GroupNorm(4, 12), 12, 4, id="group norm"),
        pytest.param(nn.Sequential(nn.GroupNorm(4, 12), nn.ReLU(), nn.GroupNorm(6, 12)), 12, 2, id="two group norms"),
    ],
)  # fmt: skip
def test_channels_pass(middle: nn.Module | Middle, read: int, neurons: int) -> None:
    found = check_exact(AroundImage(middle, read), torch.randn(2, 3, 8, 8), groups=["conv1"])
    assert found["conv1"].size == neurons
    assert found["conv1"].kind == "channel"


@pytest.mark.parametrize(
    ("middle", "size"),
    [
        pytest.param(nn.LayerNorm(12), 12, id="layer norm"),
        pytest.param(nn.RMSNorm(12), 12, id="rms norm"),
        pytest.param(nn.GroupNorm(1, 12), 12, id="one group"),
        pytest.param(lambda x: F.group_norm(x, 3), 4, id="constant groups"),
        pytest.param(lambda x: x / x.norm(dim=-1, keepdim=True), 12, id="norm"),
        pytest.param(lambda x: x - x.mean(-1, keepdim=True), 12, id="mean"),
    ],
)
def test_what_is_normalised_together_is_not_exact(middle: nn.Module | Middle, size: int) -> None:
    found = discover(Around(middle), torch.randn(2, 5))
    assert (found["fc1"].size, found["fc1"].exact) == (size, False)
    assert "together" in found["fc1"].note


def test_products_of_raw_parameters() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(5, 12)), nn.Parameter(torch.randn(3, 12))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.first) @ self.second.T

    found = check_exact(Raw(), torch.randn(2, 5))
    assert [(group.name, group.size, group.kind) for group in found] == [("first", 12, "mlp")]
    assert found["first"].reads[0].how == "operator"


def test_gated_units_lookups_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gate, self.up = nn.Embedding(9, 6), nn.Linear(6, 10), nn.Linear(6, 10)
            self.down, self.head = nn.Linear(10, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            result: Tensor = self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))
            return result

    found = check_exact(Tied(), torch.randint(0, 9, (2, 4)))
    assert {group.name: (group.size, group.kind) for group in found} == {"embed": (6, "residual"), "gate": (10, "mlp")}
    assert {site.parameter for site in found["embed"].slices([0])} >= {"embed.weight", "head.weight"}
    assert {site.parameter for site in found["gate"].producers} >= {"gate.weight", "up.weight"}


def test_multihead_attention_loses_heads() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = check_exact(nn.Sequential(nn.Linear(5, 8), model, nn.Linear(8, 3)), torch.randn(2, 4, 5))
    assert [(group.kind, group.size) for group in found if group.exact] == [("attention", 2), ("mlp", 16)]


def test_response_normalisation_is_not_exact_and_not_lost() -> None:
    class Response(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            energy = x.norm(p=2, dim=(1, 2), keepdim=True)
            return x + self.scale * (x * energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.shift

    layers = nn.Sequential(nn.Linear(5, 12), nn.GELU(), Response(), nn.Linear(12, 3))
    group = check_runs(layers, torch.randn(2, 4, 4, 5))["0"]
    assert (group.size, group.exact) == (12, False)


def test_weights_with_a_length_of_their_own() -> None:
    layers = [weight_norm(nn.Linear(5, 12)), nn.ReLU(), weight_norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3)]
    found = check_exact(nn.Sequential(*layers), torch.randn(2, 5))
    assert [(group.size, group.exact) for group in found] == [(12, True), (8, True)]


def test_a_length_that_two_directions_share_makes_up_for_neither() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(8, 12))
            self.length = nn.Parameter(torch.rand(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            one, other = (torch._weight_norm(weight, self.length, 0) for weight in (self.a, self.b))
            return nn.functional.linear(x, one).relu() + nn.functional.linear(x.sin(), other)

    found = check_runs(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), Shared(), nn.Linear(8, 3)), torch.randn(2, 5))
    assert not found["0"].exact


def test_heads_whose_channels_are_reduced_go_as_wholes() -> None:
    """As in graph attention: every head's score is a sum over its own channels."""

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.dim = 4, 8
            self.write, self.read = nn.Linear(6, 32), nn.Linear(32, 3)
            self.score = nn.Parameter(torch.randn(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            z = self.write(x).view(-1, self.heads, self.dim)
            y = z * (z * self.score).sum(-1, keepdim=True).exp()
            return self.read(y.reshape(-1, self.heads * self.dim))

    (group,) = check_exact(Scored(), torch.randn(5, 6))
    assert (group.size, group.exact) == (4, True)


def test_a_length_that_is_no_parameter_cannot_make_up_for_anything() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.direction, self.scale = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.rand(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, torch._weight_norm(self.direction, self.scale.exp(), 0))

    found = check_runs(
        nn.Sequential(nn.Linear(5, 12), nn.ReLU(), Normed(), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 5)
    )
    assert [(group.size, group.exact) for group in found] == [(12, False), (8, True)]
    assert "together" in next(iter(found)).note
    assert not found.lengths
