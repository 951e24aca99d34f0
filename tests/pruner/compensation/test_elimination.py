"""Costs against solving every smaller problem from scratch."""

import itertools

import pytest
import torch
from torch import Tensor

from pruner.compensation.elimination import Problem, eliminate, inverse, one_shot, swapped

RIDGE = 1e-3


def problem(neurons: int = 7, width: int = 1, seed: int = 0, rows: int = 5) -> Problem:
    random = torch.Generator().manual_seed(seed)
    size = neurons * width + 2  # two columns that are no neurons'
    x = torch.randn(200, size, generator=random, dtype=torch.float64)
    x = x @ torch.randn(size, size, generator=random, dtype=torch.float64)  # correlated
    columns = torch.randperm(size, generator=random)[: neurons * width].view(neurons, width)
    return Problem(x.T @ x / 200, torch.randn(rows, size, generator=random, dtype=torch.float64), columns)


def cost(one: Problem, gone: list[int]) -> float:
    """What is lost when `gone` go and the rest is solved for: min over V of tr((W − V) H (W − V)ᵀ), V zero there."""
    h = one.xx + RIDGE * one.xx.diagonal().mean() * torch.eye(len(one.xx), dtype=torch.float64)
    out = torch.zeros(len(h), dtype=torch.bool)
    out[one.columns[gone].flatten()] = True
    s, p = (~out).nonzero().flatten(), out.nonzero().flatten()
    w = one.matrix
    schur = h[p][:, p] - h[p][:, s] @ torch.linalg.solve(h[s][:, s], h[s][:, p])
    return float((w[:, p] @ schur * w[:, p]).sum()) * one.weight


@pytest.mark.parametrize("width", [1, 3])
def test_one_shot_costs_are_those_of_each_neuron_alone(width: int) -> None:
    one = problem(width=width)
    expected = torch.tensor([cost(one, [neuron]) for neuron in range(7)], dtype=torch.float64)
    torch.testing.assert_close(one_shot([one], ridge=RIDGE), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_elimination_takes_the_cheapest_next_neuron_every_time(width: int, seed: int) -> None:
    one = problem(width=width, seed=seed)
    found = eliminate([one], ridge=RIDGE)
    gone: list[int] = []
    for step in range(7):
        following = {n: cost(one, [*gone, n]) for n in range(7) if n not in gone}
        best = min(following, key=lambda n: following[n])
        assert int(found.order[step]) == best
        assert float(found.curve[step + 1]) == pytest.approx(following[best], rel=1e-6)
        gone.append(best)


def test_it_is_exact_over_more_removals_than_a_panel_holds() -> None:
    one = problem(neurons=90)
    found = eliminate([one], ridge=RIDGE)
    order = found.order.tolist()
    assert sorted(order) == list(range(90))
    for count in (1, 63, 64, 65, 89):
        assert float(found.curve[count]) == pytest.approx(cost(one, order[:count]), rel=1e-6)


def test_a_neuron_that_another_one_can_stand_in_for_costs_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=random, dtype=torch.float64)
    x[:, 3] = 2 * x[:, 1]
    one = Problem(x.T @ x / 500, torch.full((1, 4), 10.0, dtype=torch.float64), torch.arange(4).unsqueeze(1))
    costs = one_shot([one], ridge=1e-9)
    assert float(costs[1]) < 1e-4 * float(costs[0])
    assert float(costs[3]) < 1e-4 * float(costs[0])


def test_what_two_layers_read_costs_what_it_costs_in_both() -> None:
    first, second = problem(seed=1), problem(seed=2)
    both = one_shot([first, second], ridge=RIDGE)
    torch.testing.assert_close(both, one_shot([first], ridge=RIDGE) + one_shot([second], ridge=RIDGE))


def test_fewer_removals_are_the_first_of_all() -> None:
    one = problem()
    assert eliminate([one], 3, ridge=RIDGE).order[:3].tolist() == eliminate([one], ridge=RIDGE).order[:3].tolist()


def test_swaps_never_lose_and_find_the_best_of_a_bad_start() -> None:
    one = problem(neurons=6)
    worst = max(itertools.combinations(range(6), 2), key=lambda gone: cost(one, list(gone)))
    chosen, before, after = swapped([one], torch.tensor(worst), ridge=RIDGE)
    assert before == pytest.approx(cost(one, list(worst)), rel=1e-6)
    assert after == pytest.approx(cost(one, chosen.tolist()), rel=1e-6)
    assert after < before
    assert len(chosen) == 2


def test_a_matrix_that_is_not_of_full_rank_has_an_inverse_all_the_same() -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    found: Tensor = inverse(x.T @ x, 1e-9)
    assert torch.isfinite(found).all()
