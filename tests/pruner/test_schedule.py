"""The schedules: their ends, their shapes, and what they refuse."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner.schedule import CURVES, describe, gradual_targets, target_at
from tracker.errors import PlanError

SHARES = st.floats(0, 1)


@settings(deadline=None, max_examples=100)
@given(SHARES, SHARES, st.integers(1, 60), st.sampled_from(sorted(CURVES)))
def test_goes_from_initial_to_final_and_never_back(one: float, other: float, epochs: int, schedule: str) -> None:
    initial, final = sorted((one, other))
    targets = gradual_targets(initial, final, epochs, schedule)
    assert len(targets) == epochs
    assert targets[-1] == final
    if epochs > 1:
        assert targets[0] == pytest.approx(initial)
    assert all(earlier <= later + 1e-12 for earlier, later in itertools.pairwise(targets))


def test_the_cubic_schedule_is_that_of_zhu_and_gupta() -> None:
    initial, final, epochs = 0.1, 0.6, 11
    expected = [final + (initial - final) * (1 - epoch / 10) ** 3 for epoch in range(epochs)]
    assert gradual_targets(initial, final, epochs) == pytest.approx(expected)
    assert gradual_targets(initial, final, epochs, "cubic") == pytest.approx(expected)


def test_each_schedule_has_its_own_middle() -> None:
    middle = {name: gradual_targets(0.0, 1.0, 3, name)[1] for name in CURVES}
    assert middle["linear"] == pytest.approx(0.5)
    assert middle["cosine"] == pytest.approx(0.5)
    assert middle["cubic"] == pytest.approx(0.875)
    assert middle["exponential"] == pytest.approx(0.9241, abs=1e-4)
    quarter = {name: gradual_targets(0.0, 1.0, 5, name)[1] for name in CURVES}
    assert quarter["cosine"] < quarter["linear"] < quarter["cubic"] < quarter["exponential"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.5, 10), "initial sparsity = -0.1"),
        ((0.0, 1.5, 10), "final sparsity = 1.5"),
        ((0.0, float("nan"), 10), "final sparsity = nan"),
        ((0.0, "half", 10), "final sparsity = 'half'"),
        ((0.5, 0.2, 10), "cannot come back"),
        ((0.0, 0.5, 0), "num_epochs = 0"),
        ((0.0, 0.5, 2.5), "num_epochs = 2.5"),
        ((0.0, 0.5, 10, "cubik"), "Did you mean 'cubic'"),
    ],
)
def test_refuses_what_is_no_schedule(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        gradual_targets(*arguments)  # type: ignore[arg-type]


def test_a_schedule_is_json_and_gives_the_target_of_an_epoch() -> None:
    schedule = describe("cubic-1", 0, 0.5, 4)
    assert json.loads(json.dumps(schedule)) == schedule
    assert schedule["schedule_id"] == "cubic-1"
    assert [target_at(schedule["targets"], epoch) for epoch in range(4)] == schedule["targets"]


@pytest.mark.parametrize("epoch", [-1, 4, 1.0, True, None])
def test_an_epoch_that_the_schedule_does_not_have_is_an_error(epoch: object) -> None:
    with pytest.raises(PlanError, match="epochs are 0 to 3"):
        target_at(gradual_targets(0.0, 0.5, 4), epoch)  # type: ignore[arg-type]
