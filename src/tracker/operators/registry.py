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
_OURS = "pointwise views pieces contractions normalisations reductions spatial indexing creation".split()


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
    packet = overload.overloadpacket
    return _rule_of_packet(packet, overload) or _rule_of_packet(_out_of_place(packet), None)


def _rule_of_packet(packet: Any, overload: Any) -> Rule | None:
    if packet is None or packet in _RULES:
        return _RULES.get(packet)
    overloads = [overload] if overload is not None else [getattr(packet, name) for name in packet.overloads()]
    if any(torch.Tag.pointwise in each.tags for each in overloads):
        from tracker.operators.pointwise import pointwise

        return pointwise
    return None


def _out_of_place(packet: Any) -> Any:
    """`relu` for `relu_`: an operator that writes into its input does the same to its labels."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    return getattr(getattr(torch.ops, namespace), name[:-1], None) if name.endswith("_") else None


@cache
def _load() -> None:
    """Import our rules, then those that installed packages name."""
    for module in _OURS:
        import_module(f"tracker.operators.{module}")
    for entry in entry_points(group="tracker.operators"):
        entry.load()
