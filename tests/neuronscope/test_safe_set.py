import pytest
from tests.neuronscope.test_impact import TEXTS, Letters, louder
from tests.neuronscope.test_weights import gpt2

from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.safe_set import largest_safe
from tracker import discover
from tracker.errors import DataError


def test_the_most_that_stays_below_is_found_with_few_evaluations() -> None:
    order = [(0, neuron) for neuron in range(1000)]
    asked = []

    def impact(chosen: object) -> float:
        asked.append(chosen)
        return len(chosen) / 4000  # type: ignore[arg-type]

    found = largest_safe(order, impact, 0.1)
    assert 390 <= len(found.neurons) < 400
    assert found.impact_score < 0.1
    assert found.evaluations == len(asked) < 25


def test_what_does_not_fit_is_left_out_and_what_comes_after_is_not() -> None:
    order = [(0, neuron) for neuron in range(12)]
    found = largest_safe(order, lambda chosen: 0.9 if (0, 3) in chosen else 0.01 * len(chosen), 0.2, most=30)
    assert set(found.neurons) == set(order) - {(0, 3)}
    assert largest_safe(order, lambda _: 1.0, 0.2).neurons == ()
    assert largest_safe([], lambda _: 1.0, 0.2).neurons == ()
    with pytest.raises(DataError, match="threshold = 0"):
        largest_safe(order, lambda _: 0.0, 0)


def test_of_a_model() -> None:
    pytest.importorskip("transformers")
    model = louder(gpt2())
    discover(model)
    analyzer = PruningImpactAnalyzer(model, Letters())
    found = analyzer.safe_set(TEXTS, threshold=0.02)
    assert analyzer.simulate(found.neurons, TEXTS).impact_score == pytest.approx(found.impact_score, rel=1e-4)
    assert found.impact_score < 0.02
    few = [(0, neuron) for neuron in range(5)]
    assert set(analyzer.safe_set(TEXTS, candidates=few, threshold=0.02).neurons) <= set(few)
