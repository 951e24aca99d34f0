import pytest
import torch
from tests.neuronscope.test_impact import TEXTS, Letters
from tests.neuronscope.test_weights import gpt2
from torch import nn

from neuronscope.answer_cache import AnswerCache
from neuronscope.impact import PruningImpactAnalyzer
from tracker import discover


def test_the_same_question_is_answered_once_until_a_weight_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    cache, said = AnswerCache(model), []

    def answer() -> int:
        said.append(0)
        return len(said)

    x = torch.ones(2)
    assert cache.get(("a", [1, 2], x), answer) == cache.get(("a", [1, 2], torch.ones(2)), answer) == 1
    assert cache.get(("a", [1, 2], torch.zeros(2)), answer) == 2
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    assert cache.get(("a", [1, 2], x), answer) == 3
    model[0].weight.data[1, 1] = 7.0  # leaves no version
    assert cache.get(("a", [1, 2], x), answer) == 4
    model[1].running_mean[2] = 1.0
    assert cache.get(("a", [1, 2], x), answer) == 5
    assert cache.get(("a", [1, 2], x), answer) == 5
    assert cache.hits == 2


def test_it_forgets_the_oldest() -> None:
    cache = AnswerCache(nn.Linear(1, 1), entries=2)
    for asked in ("a", "b", "c"):
        cache.get(asked, lambda asked=asked: asked)
    assert cache.get("c", lambda: "new") == "c"
    assert cache.get("a", lambda: "new") == "new"


def test_an_analyzer_runs_the_model_once_for_the_same_question() -> None:
    pytest.importorskip("transformers")
    model = gpt2()
    discover(model)
    runs = []
    analyzer = PruningImpactAnalyzer(model, Letters())
    model.register_forward_hook(lambda *_: runs.append(0))
    one = analyzer.simulate([(0, 1), (1, 2)], TEXTS)
    count = len(runs)
    assert count >= 2
    assert analyzer.simulate([(1, 2), (0, 1)], TEXTS) is one
    assert len(runs) == count
    analyzer.simulate([(1, 2), (0, 1)], TEXTS, ablation="mean")
    assert len(runs) > count


def test_the_dense_answers_serve_the_next_set_until_a_weight_changes() -> None:
    pytest.importorskip("transformers")
    model = gpt2()
    discover(model)
    runs = []
    analyzer = PruningImpactAnalyzer(model, Letters())
    model.register_forward_hook(lambda *_: runs.append(0))
    analyzer.simulate([(0, 1)], TEXTS)
    assert len(runs) == 2
    analyzer.simulate([(0, 2)], TEXTS)
    assert len(runs) == 3
    model.lm_head.weight.data[0] += 1.0
    changed = analyzer.simulate([(0, 3)], TEXTS)
    assert len(runs) == 5
    assert changed.impact_score == pytest.approx(
        PruningImpactAnalyzer(model, Letters()).simulate([(0, 3)], TEXTS).impact_score
    )
