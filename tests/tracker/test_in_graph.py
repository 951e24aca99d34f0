"""What is seen of compiled training is what is seen of the same training that is not compiled."""

import copy
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.tracker.watched_models import CNN, Encoder, Raw
from torch import nn

from pruner import PruningPlan, prune_
from tracker import NeuronTracker, discover
from tracker.activity import ActivityStats
from tracker.errors import DataError
from tracker.in_graph import is_compiled, something_is_compiled


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def cnn_batches() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    random = torch.Generator().manual_seed(0)
    return [((torch.randn(5, 1, 8, 8, generator=random),), {}) for _ in range(4)]


def encoder_batches() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    random = torch.Generator().manual_seed(0)
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for _ in range(4):
        mask = torch.ones(3, 6, dtype=torch.int64)
        mask[0, 4:] = 0
        ids = torch.randint(0, 11, (3, 6), generator=random)
        found.append(((), {"input_ids": ids, "attention_mask": mask}))
    return found


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "cnn": (CNN, cnn_batches),
    "encoder, padded": (Encoder, encoder_batches),
}


def made(name: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model, batches = CASES[name][0](), CASES[name][1]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled code draws other numbers
    args, kwargs = batches[0]
    discover(model, args or None, kwargs or None)
    return model, batches


def train(model: nn.Module, call: Any, batches: list[Any], tracker: NeuronTracker, every: int = 1) -> ActivityStats:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    with tracker.tracking(every=every):
        for args, kwargs in batches:
            optimizer.zero_grad()
            call(*args, **kwargs).square().mean().backward()
            optimizer.step()
    return tracker.stats


def same(one: ActivityStats, other: ActivityStats) -> None:
    assert one.batches == other.batches
    assert list(one) == list(other)
    for name in one:
        assert one[name].count == other[name].count
        for field in ("mean", "variance", "minimum", "maximum", "mean_magnitude", "firing_frequency"):
            np.testing.assert_allclose(
                getattr(one[name], field), getattr(other[name], field), rtol=1e-4, atol=1e-5, err_msg=f"{name} {field}"
            )


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_compiled_training_is_seen_like_any_other(name: str, in_place: bool) -> None:
    plain, batches = made(name)
    expected = train(plain, plain, batches, NeuronTracker(plain))
    model, _ = made(name)
    if in_place:
        model.compile(backend="aot_eager")
    compiled = model if in_place else torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    same(train(model, compiled, batches, tracker), expected)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow  # Inductor compiles C++
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_default_compiler_sees_the_same() -> None:
    plain, batches = made("cnn")
    expected = train(plain, plain, batches, NeuronTracker(plain))
    model, _ = made("cnn")
    compiled = torch.compile(model)
    same(train(model, compiled, batches, NeuronTracker(compiled)), expected)


def test_code_compiled_before_is_compiled_anew_once() -> None:
    graphs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model, batches = made("cnn")
    model.train()
    compiled = torch.compile(model, backend=counting)
    compiled(*batches[0][0])
    assert graphs == 1
    tracker = NeuronTracker(compiled)
    train(model, compiled, batches, tracker)
    anew = graphs
    assert 1 < anew <= 4  # the hooks of the whole model may be compiled by themselves
    for _ in range(2):
        compiled(*batches[0][0])  # between the epochs, where nothing counts
        stats = train(model, compiled, batches, tracker)
    assert graphs == anew
    assert stats.batches == 12


def test_a_twin_of_the_same_class_that_was_compiled_first_lends_its_code_to_nobody() -> None:
    twin, batches = made("cnn")
    plain = torch.compile(twin, backend="aot_eager")
    twin.train()
    plain(*batches[0][0])
    model, _ = made("cnn")
    compiled = torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    model.train()
    with tracker.tracking():
        for _ in range(2):
            plain(*batches[0][0])
            compiled(*batches[0][0])
    assert tracker.stats.batches == 2
    assert tracker.stats["conv1"].count == 2 * 5 * 64


def test_evaluation_and_forwards_outside_of_the_block_do_not_count() -> None:
    model, batches = made("cnn")
    compiled = torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    with tracker.tracking():
        model.eval()
        compiled(*batches[0][0])
        model.train()
        compiled(*batches[0][0])
        model.eval()
        compiled(*batches[0][0])
    model.train()
    compiled(*batches[0][0])
    assert tracker.stats.batches == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_one_in_so_many_steps(compiled: bool) -> None:
    model, batches = made("cnn")
    call = torch.compile(model, backend="aot_eager") if compiled else model
    tracker = NeuronTracker(call)
    assert train(model, call, batches * 2, tracker, every=3).batches == 3
    with pytest.raises(DataError, match="every = 0"), tracker.tracking(every=0):
        pass


def test_a_model_that_was_pruned_is_seen_anew() -> None:
    model, batches = made("cnn")
    compiled = torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    train(model, compiled, batches, tracker)
    prune_(model, PruningPlan({"conv1": [0, 1]}))
    tracker.log_epoch(0)
    discover(model, batches[0][0])
    assert train(model, compiled, batches, tracker)["conv1"].size == 4


def test_what_raw_parameters_are_multiplied_with_is_hidden_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Raw(), torch.randn(3, 8)
    discover(model, x)
    compiled = torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    hidden = pytest.raises(DataError, match="none of its layers were seen")
    with caplog.at_level(logging.WARNING), hidden, tracker.tracking():
        compiled(x)
    assert "compiled code hides what raw parameters are multiplied with" in caplog.text


def test_copies_of_the_model_are_not_watched() -> None:
    model, batches = made("cnn")
    compiled = torch.compile(model, backend="aot_eager")
    tracker = NeuronTracker(compiled)
    with tracker.tracking():
        model.train()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            twin(*batches[0][0])
            torch.compile(twin, backend="aot_eager")(*batches[0][0])
        compiled(*batches[0][0])
    assert tracker.stats.batches == 1


def test_whether_anything_is_compiled() -> None:
    model = nn.Linear(2, 2)
    assert not is_compiled(model)
    assert not something_is_compiled()
    assert is_compiled(torch.compile(model, backend="eager"))
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.randn(1, 2))
    assert not is_compiled(model)
    assert something_is_compiled()


def test_a_step_that_is_compiled_as_a_whole_is_seen() -> None:
    model, batches = made("cnn")
    model.train()
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.randn(1, 2))

    @torch.compile(backend="aot_eager")
    def forward(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    tracker = NeuronTracker(model)
    with tracker.tracking():
        for args, _ in batches:
            forward(*args).backward()
    assert tracker.stats.batches == 4
    assert tracker.stats["conv1"].count == 4 * 5 * 64


def test_raw_parameters_are_seen_where_only_others_are_compiled() -> None:
    torch.manual_seed(0)
    model, x = Raw(), torch.randn(3, 8)
    discover(model, x)
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.randn(1, 2))
    tracker = NeuronTracker(model)
    with tracker.tracking():
        model(x)
    assert tracker.stats.batches == 1
