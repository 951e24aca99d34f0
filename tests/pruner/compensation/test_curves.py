"""What layers pay for losing neurons, in units of what the answers of the model move."""

import pytest
import torch
from torch import nn

import pruner
from pruner.compensation.curves import scaled

ERRORS = torch.linspace(0, 1, 11, dtype=torch.float64)


def test_measured_points_are_met_and_the_ratio_grows_in_between() -> None:
    costs = scaled(ERRORS, {3: 0.03, 6: 0.6, 9: 9.0})
    assert costs[[0, 3, 6, 9]].tolist() == pytest.approx([0.0, 0.03, 0.6, 9.0])
    ratios = costs[1:] / ERRORS[1:]
    assert ratios[:3].tolist() == pytest.approx([0.1] * 3)  # below the first point as at it
    assert (ratios[3:9] / ratios[2:8]).tolist() == pytest.approx([10 ** (1 / 3)] * 6)
    assert float(ratios[9]) == pytest.approx(10)


def test_a_distance_that_is_at_its_bound_makes_nothing_cheaper() -> None:
    costs = scaled(ERRORS, {3: 0.3, 6: 0.6, 9: 0.65})
    assert costs.tolist() == pytest.approx(ERRORS.tolist())


def test_dead_neurons_say_nothing_about_the_others() -> None:
    errors = torch.cat([torch.full((5,), 1e-12, dtype=torch.float64), ERRORS])
    told = scaled(errors, {3: 1e-6, 10: 0.5})
    assert torch.equal(told, scaled(errors, {10: 0.5}))
    assert not scaled(errors, {3: 1e-6}).any()


@pytest.mark.parametrize("measured", [{5: 0.0, 9: 1.0}, {5: -1e-9, 9: 1.0}])
def test_answers_that_did_not_move_cost_nothing_until_they_do(measured: dict[int, float]) -> None:
    costs = scaled(ERRORS, measured)
    assert float(costs[5]) < 1e-12
    assert float(costs[9]) == pytest.approx(1)
    assert (costs.diff() >= 0).all()


def test_a_curve_says_where_it_was_measured() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    found = pruner.compress(model, [torch.randn(64, 8)], ratio=0.5, effort="low", dry_run=True)
    measured = found["budgets"]["layers"]["0"]["curve"]["measured"]
    assert [point["removed"] for point in measured] == [8, 12, 15]
    assert 0 < measured[0]["distance"] < measured[-1]["distance"]
