"""Which rule belongs to which operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch

Rule = Callable[..., None]
R = TypeVar("R", bound=Rule)

_RULES: dict[Any, Rule] = {}
_OURS = ("pointwise", "views", "pieces", "contractions", "normalisations", "reductions", "spatial", "indexing")


def operator_rule(*operators: Any) -> Callable[[R], R]:
    """Register a rule for operators: packets such as `torch.ops.aten.mm`, or names of aten operators."""

    def register(rule: R) -> R:
        for operator in operators:
            packet = getattr(torch.ops.aten, operator, None) if isinstance(operator, str) else operator
            if packet is not None:  # an operator that this version of torch does not have
                _RULES[packet] = rule
        return rule

    return register


def rule_for(overload: Any) -> Rule | None:
    """The rule of an operator; operators that torch tags as pointwise share one."""
    _load()
    rule = _RULES.get(overload.overloadpacket)
    if rule is None and torch.Tag.pointwise in overload.tags:
        from tracker.operators.pointwise import pointwise

        return pointwise
    return rule


@cache
def _load() -> None:
    """Import our rules, then those that installed packages name."""
    for module in _OURS:
        import_module(f"tracker.operators.{module}")
    for entry in entry_points(group="tracker.operators"):
        entry.load()
