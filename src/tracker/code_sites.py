"""Where in a module's own code a size is written, so that another one can be put there.

Some code computes a size from a width that does not follow the neurons: `reshape(B, N, C)` with the C of the residual
stream, where all heads once had C channels together. No attribute can be changed to make that right; the expression
itself must become another one. A *spot* is cheap to take while the model is traced; `site_of` then finds the
expression in the source and names it, so that `tracker.rewriting` finds it again, in another process too.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

Span = tuple[int, int, int, int]  # first line, first column, last line, last column
Definition = ast.FunctionDef | ast.AsyncFunctionDef

_OURS = f"{Path(__file__).parent}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_PASSED_ON = (_OURS, f"{_TORCH}overrides.py", f"{_TORCH}utils/_contextlib.py", f"{_TORCH}_tensor.py")
_NESTED = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"})
_DEEPEST = 4
_STEP = re.compile(r"([^@>=#]+)@(\d+)\.(\d+)-(\d+)\.(\d+)")
_SITE = re.compile(r"([^=#]+)=(-?\d+)#([0-9a-f]{8})")


class Standing(NamedTuple):
    """A function on the stack and where it stands; `running` is its own code, or that of a comprehension in it."""

    function: CodeType
    running: CodeType
    instruction: int


class Spot(NamedTuple):
    """A moment in a running model: the functions from the innermost one out to the method of the module `owner`."""

    owner: nn.Module
    stack: tuple[Standing, ...]


@dataclass(frozen=True)
class Place:
    """Which part of the running expression gives the size.

    `kind` "size": entry `index` of the `count` sizes given to a call; "left", "right": an operand.
    """

    kind: Literal["size", "left", "right", "lower", "upper"]
    index: int = 0
    count: int = 1


class Step(NamedTuple):
    """An expression in a function; its lines are counted from the function's first."""

    function: str
    span: Span


class Site(NamedTuple):
    """The expression of a size in the code of a module.

    `steps` go from the module's method over the calls inwards; `value` is what the author's expression came to;
    `digest` is of the source of all these functions.
    """

    steps: tuple[Step, ...]
    value: int
    digest: str

    def __str__(self) -> str:
        steps = (f"{name}@{first}.{start}-{last}.{stop}" for name, (first, start, last, stop) in self.steps)
        return f"{'>'.join(steps)}={self.value}#{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Site | None:
        """The site with this name; None where it is no name of one."""
        found = _SITE.fullmatch(text)
        steps = [_STEP.fullmatch(step) for step in found[1].split(">")] if found else []
        if found is None or not all(steps):
            return None
        parsed = (Step(step[1], (int(step[2]), int(step[3]), int(step[4]), int(step[5]))) for step in steps if step)
        return cls(tuple(parsed), int(found[2]), found[3])


def spot() -> Spot | None:
    """Where the model's code stands; None outside of a module's methods and the functions that they call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_ON):
        handed_over = frame.f_code.co_name == "handle_torch_function"
        frame = frame.f_back
        if handed_over and frame is not None:  # by a function of PyTorch's, which got what the model's code gave
            frame = frame.f_back
    stack: list[Standing] = []
    while frame is not None and len(stack) < _DEEPEST and not frame.f_code.co_filename.startswith((_OURS, _TORCH)):
        running, instruction = frame.f_code, frame.f_lasti
        while frame.f_code.co_name in _NESTED and frame.f_back is not None:
            if frame.f_code not in frame.f_back.f_code.co_consts:
                return None  # it comes from elsewhere
            frame = frame.f_back
        stack.append(Standing(frame.f_code, running, instruction))
        owner = _owner(frame)
        if owner is not None:
            return Spot(owner, tuple(stack))
        frame = frame.f_back
    return None


def _owner(frame: FrameType) -> nn.Module | None:
    """The module whose method a frame is, if it is one."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    kind: Any = type(first)
    return first if isinstance(first, nn.Module) and code in methods(kind) else None


@cache
def methods(kind: type) -> dict[CodeType, str]:
    """The code of every method that instances of a class have, beneath its decorators too, with the method's name."""
    found: dict[CodeType, str] = {}
    seen: set[str] = set()
    for base in kind.__mro__:
        for name, value in vars(base).items():
            if name not in seen:
                seen.add(name)
                found.update(dict.fromkeys((function.__code__ for function in beneath(value)), name))
    return found


def beneath(value: Any, depth: int = 3) -> Iterator[FunctionType]:
    """A function, and those that it keeps in its closure, as decorators do."""
    if not isinstance(value, FunctionType) or depth < 0:
        return
    yield value
    for cell in value.__closure__ or ():
        try:
            yield from beneath(cell.cell_contents, depth - 1)
        except ValueError:  # an empty cell
            continue


def site_of(spot: Spot, place: Place, value: int) -> Site | None:
    """The expression at a spot; None where the source is not at hand or gives no single expression for the size."""
    *outer, _ = reversed(spot.stack)
    innermost = spot.stack[0]
    node = _running_node(innermost)
    target = _part(node, place) if node is not None else None
    steps = [_step(standing, _running_node(standing)) for standing in outer] + [_step(innermost, target)]
    if any(step is None for step in steps):
        return None
    digest = _digest([standing.function for standing in reversed(spot.stack)])
    return Site(tuple(step for step in steps if step), value, digest)


def _step(standing: Standing, node: ast.expr | None) -> Step | None:
    if node is None or node.end_lineno is None or node.end_col_offset is None:
        return None
    first = standing.function.co_firstlineno
    span = (node.lineno - first, node.col_offset, node.end_lineno - first, node.end_col_offset)
    return Step(standing.function.co_name, span)


def _running_node(standing: Standing) -> ast.expr | None:
    """The call or operation that a function is at."""
    positions = list(standing.running.co_positions())[standing.instruction // 2]
    definition = definition_of(standing.function)
    if definition is None or None in positions:
        return None
    line, last, column, stop = positions
    for node in ast.walk(definition):
        # The position of a method call over several lines starts at the method's name, so calls go by their end alone.
        if (
            isinstance(node, ast.Call | ast.BinOp | ast.Subscript)
            and (node.end_lineno, node.end_col_offset) == (last, stop)
            and (isinstance(node, ast.Call) or (node.lineno, node.col_offset) == (line, column))
        ):
            return node
    return None


def _part(node: ast.expr, place: Place) -> ast.expr | None:
    if isinstance(node, ast.BinOp):
        return {"left": node.left, "right": node.right}.get(place.kind)
    if isinstance(node, ast.Subscript):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        item = items[place.index] if place.index < len(items) else None
        return {"lower": item.lower, "upper": item.upper}.get(place.kind) if isinstance(item, ast.Slice) else None
    if not isinstance(node, ast.Call):
        return None
    if place.kind != "size":  # the one number given to a function, such as math.sqrt
        return node.args[0] if len(node.args) == 1 and not node.keywords else None
    given: Sequence[ast.expr] = node.args
    for listed in (*node.args, *(keyword.value for keyword in node.keywords)):
        if isinstance(listed, ast.Tuple | ast.List):
            given = listed.elts
    starred = [i for i, item in enumerate(given) if isinstance(item, ast.Starred)]
    if not starred:
        return given[place.index] if len(given) == place.count else None
    from_the_end = place.index - place.count
    if len(starred) == 1 and len(given) + from_the_end > starred[0]:
        return given[from_the_end]
    return None


def definition_of(code: CodeType) -> Definition | None:
    """The definition of a function in its source; None where there is no source."""
    return _definitions(code.co_filename).get((code.co_name, code.co_firstlineno))


@lru_cache(maxsize=64)
def _definitions(filename: str) -> dict[tuple[str, int], Definition]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return {}
    return {
        (node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])): node
        for node in ast.walk(tree)
        if isinstance(node, Definition)
    }


def _digest(functions: Sequence[CodeType]) -> str:
    """Tells whether the source of functions is the same: from their syntax, not from blanks, comments or place."""
    sources = (ast.unparse(found) if (found := definition_of(code)) else "" for code in functions)
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]


def digest_of(functions: Sequence[FunctionType]) -> str:
    """The digest of functions, the outermost first."""
    return _digest([function.__code__ for function in functions])
