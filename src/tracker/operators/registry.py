"""Which rule belongs to which operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

Rule = Callable[..., None]
R = TypeVar("R", bound=Rule)

_RULES: dict[Any, Rule] = {}
_OURS = (
    "pointwise views pieces contractions attention convolutions normalisations reductions spatial "
    "transforms selection indexing writing parts creation"
).split()


def operator_rule(*operators: Any) -> Callable[[R], R]:
    """Register a rule for operators: packets such as `torch.ops.aten.mm`, names of aten operators, or whole names.

    An operator that may not be loaded yet is given by its whole name, such as `torchvision::roi_align`.
    """

    def register(rule: R) -> R:
        for operator in operators:
            name = isinstance(operator, str) and "::" not in operator
            packet = getattr(torch.ops.aten, operator, None) if name else operator
            if packet is not None:  # an operator that this version of torch does not have
                _RULES[packet] = rule
        return rule

    return register


def rule_for(overload: Any) -> Rule | None:
    """The rule of an operator; operators that torch tags as pointwise share one."""
    _load()
    if not isinstance(overload, torch._ops.OpOverload):  # an operator that takes functions
        return _RULES.get(f"higher_order::{overload.name()}")
    if overload._overloadname.endswith("out"):
        return _into_out
    packet = overload.overloadpacket
    return _rule_of_packet(packet, overload) or _rule_of_packet(_original(packet, overload), None)


def _rule_of_packet(packet: Any, overload: Any) -> Rule | None:
    if packet is None:
        return None
    for key in (packet, packet._qualified_op_name):
        if key in _RULES:
            return _RULES[key]
    overloads = [overload] if overload is not None else [getattr(packet, name) for name in packet.overloads()]
    if any(torch.Tag.pointwise in each.tags for each in overloads):
        from tracker.operators.pointwise import pointwise

        return pointwise
    return None


def _original(packet: Any, overload: Any) -> Any:
    """What an operator is a variant of: `relu_`, which writes into its input, of `relu`; `view_copy` of `view`."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    original = name[:-1] if name.endswith("_") else ""
    if torch.Tag.view_copy in overload.tags:
        original = name.removesuffix("_copy")
    return getattr(getattr(torch.ops, namespace), original, None) if original else None


def _into_out(flow: Any, made: Any, /, *args: Any, **kwargs: Any) -> None:
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            flow.freeze(leaf, f"enters `{flow.operator}`, which writes into a tensor that it is given")


@cache
def _load() -> None:
    """Import our rules, then those that installed packages name."""
    for module in _OURS:
        import_module(f"tracker.operators.{module}")
    for entry in entry_points(group="tracker.operators"):
        entry.load()
