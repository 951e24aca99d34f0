"""Models that are compiled: the smaller model never answers with old code."""

from collections.abc import Callable

import pytest
import torch
from tests.pruner.small_net import GONE, Net, X, expected, net, pruned, says
from tests.tracker.test_compiled import Counting
from torch import Tensor, nn
from torch.nn.functional import linear

from pruner.engine import PruningEngine
from pruner.plan import PruningPlan


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_compiled_model_is_compiled_again(dynamic: bool | None) -> None:
    torch.compiler.reset()
    model, compiler = net(), Counting()
    wanted = expected(model)
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=dynamic)
    compiled(X)
    pruned(compiled)
    assert compiler.graphs == 1
    says(compiled, wanted)
    assert compiler.graphs == 2
    compiled(X).sum().backward()
    assert model.fc1.weight.grad.shape == (5, 5)


@pytest.mark.parametrize("before", [True, False], ids="used unused".split())
def test_a_model_compiled_in_place_is_compiled_again(before: bool) -> None:
    torch.compiler.reset()
    model, compiler = net(), Counting()
    wanted = expected(model)
    model.compile(backend=compiler)
    if before:
        model(X)
    pruned(model)
    says(model, wanted)
    assert compiler.graphs == 1 + before


def test_compiled_parts_are_compiled_again() -> None:
    torch.compiler.reset()
    wrapped, in_place = net(), net()
    model = nn.Sequential(torch.compile(wrapped, backend="eager"), nn.Linear(3, 5).double(), in_place)
    in_place.compile(backend="eager")
    with torch.no_grad():  # PyTorch's compiler looks for the gradient of what one compiled part hands to the next
        model(X)
    wanted = expected(in_place, linear(expected(wrapped), model[1].weight, model[1].bias)).detach()
    pruned(model, plan=PruningPlan({"0._orig_mod.fc1": GONE, "2.fc1": GONE}))
    says(model, wanted)


class Freezing(Counting):
    """A compiler that makes constants of the weights, as inductor's `freezing` does."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        self.graphs += 1
        weights = [x.detach().clone() if isinstance(x, nn.Parameter) else None for x in inputs]

        def run(*now: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                out: tuple[Tensor, ...] = graph(*(x if w is None else w for x, w in zip(now, weights, strict=True)))
            return out

        return run


@pytest.mark.skipif(not hasattr(torch.compiler, "skip_all_guards_unsafe"), reason="this PyTorch always guards")
def test_code_that_holds_the_weights_of_a_model_is_dropped_wherever_it_is() -> None:
    torch.compiler.reset()
    model, compiler = net(), Freezing()
    wanted, whole = expected(model), model(X).detach()
    unguarded = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled = torch.compile(model, backend=compiler, options=unguarded)
    engine = PruningEngine()
    says(compiled, whole)
    engine.backup(model)
    pruned(model)  # the one inside
    says(compiled, wanted)
    engine.restore(model)
    says(compiled, whole)
    assert compiler.graphs == 3


def test_pruning_a_compiled_model_often_keeps_it_compiled() -> None:
    torch.compiler.reset()
    wide = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    compiler = Counting()
    model = torch.compile(wide, backend=compiler, fullgraph=True)
    model(X)
    rounds = torch._dynamo.config.recompile_limit + 3
    for done in range(rounds):
        pruned(model, plan=PruningPlan({"0": [done]}))
        model(X)
    assert compiler.graphs == rounds + 1


def test_a_function_compiled_inside_of_a_model_follows() -> None:
    torch.compiler.reset()

    class Inside(Net):
        @torch.compile(backend="eager")
        def body(self, x: Tensor) -> Tensor:
            return super().forward(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Inside().double()
    model(X)
    wanted = expected(model)
    pruned(model)
    says(model, wanted)
