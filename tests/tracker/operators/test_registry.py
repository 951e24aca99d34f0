"""Which rule an operator has, and how to add one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import between, reason, rows, sizes
from torch import Tensor

from tracker.operators import operator_rule, registry, rule_for
from tracker.operators.pointwise import pointwise
from tracker.operators.views import view
from tracker.operators.writing import index_add

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "rule"),
    [
        (aten.relu.default, pointwise),
        (aten.relu_.default, pointwise),
        (aten.add.Tensor, pointwise),
        (aten.add_.Tensor, pointwise),
        (aten.where.self, pointwise),
        (aten.view.default, view),
        (aten._unsafe_view.default, view),
        (aten.view_copy.default, view),
        (aten.index_copy.default, index_add),
        (aten.renorm.default, None),
    ],
)
def test_operators_have_the_rule_of_their_name_or_of_all_pointwise_ones(operator: Any, rule: Any) -> None:
    assert rule_for(operator) is rule


@pytest.fixture
def doubled() -> Iterator[Any]:
    """An operator of somebody else's, and no rule for it afterwards."""
    library = torch.library.Library("neuronscope_test", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
    operator = torch.ops.neuronscope_test.doubled
    yield operator
    registry._RULES.pop(operator, None)
    library._destroy()


def test_an_operator_of_ones_own_freezes_until_it_has_a_rule(doubled: Any) -> None:
    model = between(lambda m, h: doubled(h))
    found = check_exact(model, rows())
    assert not len(found)
    assert dict(found.operators_without_rule) == {"neuronscope_test.doubled.default": 1}
    assert "neuronscope_test.doubled.default" in reason(found, "a")

    @operator_rule(doubled)
    def rule(flow: Any, out: Tensor, x: Tensor) -> None:
        flow.put(out, flow.blocks(x))

    assert sizes(check_exact(model, rows())) == {"a": 8}


def test_a_rule_that_lays_labels_wrongly_is_told(doubled: Any) -> None:
    @operator_rule(doubled)
    def rule(flow: Any, out: Tensor, x: Tensor) -> None:
        flow.put(out, [block._replace(axes=(0,)) for block in flow.blocks(x)])

    with pytest.raises(Exception, match=r"rule of `neuronscope_test\.doubled\.default` laid labels of shape"):
        check_exact(between(lambda m, h: doubled(h)), rows())


def test_names_that_this_torch_does_not_have_are_passed_over() -> None:
    @operator_rule("an_operator_of_the_future")
    def rule(*_: Any) -> None:
        raise AssertionError

    assert rule not in registry._RULES.values()
