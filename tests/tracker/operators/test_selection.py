"""What a model chooses among: experts that it looks up, and everything else that has a largest entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.tracker.equivalence import check_runs
from torch import Tensor, nn

from tracker import NeuronMap, discover

EXPERTS, WIDTH, CHOSEN = 6, 8, 2
Choice = Callable[["Mixture", Tensor], tuple[Tensor, Tensor]]


def softmax_first(model: Mixture, scores: Tensor) -> tuple[Tensor, Tensor]:
    values, chosen = scores.softmax(-1).topk(CHOSEN, -1)
    return values, chosen


def softmax_last(model: Mixture, scores: Tensor) -> tuple[Tensor, Tensor]:
    values, chosen = scores.topk(CHOSEN, -1)
    return values.softmax(-1), chosen


def sigmoid(model: Mixture, scores: Tensor) -> tuple[Tensor, Tensor]:
    shares = scores.sigmoid()
    chosen = (shares + model.correction).topk(CHOSEN, -1).indices
    return shares.gather(1, chosen), chosen


class Mixture(nn.Module):
    """Experts that are tables of weights, looked up row by row."""

    def __init__(self, choice: Choice = softmax_first) -> None:
        super().__init__()
        self.choice = choice
        self.router = nn.Linear(4, EXPERTS)
        self.correction = nn.Parameter(torch.rand(EXPERTS))
        self.experts = nn.Parameter(torch.randn(EXPERTS, 4, WIDTH))
        self.bias = nn.Embedding(EXPERTS, WIDTH)
        self.num_experts = EXPERTS
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.choice(self, self.router(x))
        return self.out(self.mixed(x, shares, chosen))

    def mixed(self, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        flat = chosen.reshape(-1)
        rows = x.repeat_interleave(CHOSEN, 0).unsqueeze(1)
        made = torch.bmm(rows, self.experts[flat]).squeeze(1) + self.bias(flat)
        return (made * shares.reshape(-1, 1)).view(len(x), CHOSEN, WIDTH).sum(1)


def reason(neurons: NeuronMap, name: str) -> str:
    return next(entry.reason for entry in neurons.frozen if entry.name == name)


@pytest.mark.parametrize("choice", [softmax_first, softmax_last, sigmoid], ids=lambda choice: choice.__name__)
def test_experts_are_chosen_by_a_router(choice: Choice) -> None:
    neurons = check_runs(Mixture(choice), torch.randn(3, 4))
    group = neurons["router"]
    assert (group.size, group.kind, group.exact, group.minimum) == (EXPERTS, "expert", False, CHOSEN)
    assert group.note == "the model chooses among them"
    places = {"router.weight", "router.bias", "experts", "bias.weight"}
    assert {site.parameter for site in group.members} == places | ({"correction"} if choice is sigmoid else set())


class Counted(Mixture):
    """Experts that are given their rows one after the other."""

    def counted(self, chosen: Tensor) -> Tensor:
        return torch.histc(chosen.float(), bins=self.num_experts, min=0, max=self.num_experts - 1)

    def mixed(self, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        ordered, order = chosen.reshape(-1).sort()
        rows = x.float().repeat_interleave(CHOSEN, 0)[order]
        ends = self.counted(ordered).cumsum(0, dtype=torch.int32)
        made = torch._grouped_mm(rows, self.experts.float(), offs=ends)
        made = made[order.argsort()] * shares.reshape(-1, 1)
        return made.view(len(x), CHOSEN, WIDTH).sum(1).to(self.out.weight.dtype)


def test_counts_follow_the_number_that_the_code_names() -> None:
    neurons = check_runs(Counted(), torch.randn(3, 4))
    assert neurons["router"].kind == "expert"
    assert [(i.module, i.path, dict(i.follows)) for i in neurons.integers if i.path == ("num_experts",)] == [
        ("", ("num_experts",), {"router": 1})
    ]


def test_experts_stay_where_their_number_is_written_in_the_code() -> None:
    class Constant(Counted):
        def counted(self, chosen: Tensor) -> Tensor:
            return torch.histc(chosen.float(), bins=6, min=0, max=5)

    neurons = discover(Constant(), (torch.randn(3, 4),))
    assert "constant size 6" in reason(neurons, "router")


def frozen_by(then: Callable[[Mixture, Tensor], Tensor]) -> str:
    class Other(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            return then(self, x)

    return reason(discover(Other(), (torch.randn(3, 4),)), "router")


def test_a_distribution_that_nothing_is_chosen_by_stays_whole() -> None:
    assert "distribution" in frozen_by(lambda model, x: model.router(x).softmax(-1) @ model.experts.mean(1))


def test_the_largest_of_neurons_stay() -> None:
    said = frozen_by(lambda model, x: model.router(x).topk(3, -1).values @ model.out.weight[:, :3].T)
    assert "largest entries" in said


def test_a_choice_that_is_the_answer_stays() -> None:
    class Classifier(Mixture):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(self.router(x).topk(CHOSEN))

    assert "output" in reason(discover(Classifier(), (torch.randn(3, 4),)), "router")


def test_a_choice_that_is_computed_with_stays() -> None:
    def shifted(model: Mixture, x: Tensor) -> Tensor:
        shares, chosen = softmax_first(model, model.router(x))
        return model.mixed(x, shares, (chosen + 1) % EXPERTS)

    assert "positions that were chosen" in frozen_by(shifted)


def test_a_choice_that_also_leaves_stays() -> None:
    class Told(Mixture):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            shares, chosen = self.choice(self, self.router(x))
            return self.out(self.mixed(x, shares, chosen)), chosen

    assert "output" in reason(discover(Told(), (torch.randn(3, 4),)), "router")


def test_tokens_that_are_chosen_leave_neurons_alone() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.score, self.down = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x).relu()
            chosen = self.score(hidden).squeeze(-1).topk(2, 1).indices
            return self.down(hidden.gather(1, chosen.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))

    neurons = check_runs(Tokens(), torch.randn(2, 5, 4))
    assert neurons["up"].exact
    assert {group.kind for group in neurons} == {"mlp"}
