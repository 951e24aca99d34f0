"""Integers that remember where they came from.

While a model is traced, its integer attributes and the sizes of labelled axes are `Tracked`: an `int` that carries an
expression. Seen again as an argument of `view`, `split` or `expand`, it tells which attribute a size came from; turned
into a float or compared, it tells that a *number* or a branch depends on a size, which no shape check would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union

from torch import nn

from tracker.attention import let_follow
from tracker.rewriting import CODE_SIZES, resize, size_at


class Attribute(NamedTuple):
    """An integer attribute of a module; `path` leads to it through tuples, lists and dicts."""

    module: str
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        first, *rest = self.path
        return f"{self.module}.{first}".lstrip(".") + "".join(f"[{step!r}]" for step in rest)


class Size(NamedTuple):
    """The size of a labelled axis, by its number in the trace."""

    number: int


class Arithmetic(NamedTuple):
    """An operation on two expressions; "compare" gives the sign of their difference."""

    operator: str
    left: Expression
    right: Expression


Expression = Union[int, Attribute, Size, Arithmetic]  # noqa: UP007 (a recursive alias cannot use | here)
Side = Literal["left", "right"]  # of an operation; "left" also is the only argument of a function
Notice = Callable[[Expression, Side], None]

_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "add": int.__add__,
    "sub": int.__sub__,
    "mul": int.__mul__,
    "floordiv": int.__floordiv__,
    "mod": int.__mod__,
    "compare": lambda left, right: (left > right) - (left < right),
}
_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")


class Tracked(int):
    """An integer with the expression that made it; `notice` is told when it becomes a number."""

    expression: Expression
    notice: Notice

    def __new__(cls, value: int, expression: Expression, notice: Notice) -> Tracked:
        made = super().__new__(cls, value)
        made.expression = expression
        made.notice = notice
        return made

    def number(self, side: Side = "left") -> int:
        """Used as a number: report it, and forget the origin."""
        self.notice(self.expression, side)
        return int.__int__(self)

    def __float__(self) -> float:
        return float(self.number())

    def __truediv__(self, other: Any) -> Any:
        return self.number() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.number("right")

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self.number(), other, modulo)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(other, self.number("right"), modulo)

    def __neg__(self) -> Tracked:
        match self.expression:
            case Arithmetic("mul", -1, inner):
                return Tracked(-int(self), inner, self.notice)
            case inner:
                return Tracked(-int(self), Arithmetic("mul", -1, inner), self.notice)

    def __pos__(self) -> Tracked:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)


def _install_operator(name: str) -> None:
    """Give `Tracked` one arithmetic operator in both directions."""
    plain = _OPERATORS[name]

    def combine(left: int, right: int, origin: Tracked) -> Tracked:
        value = plain(int.__int__(left), int.__int__(right))
        return Tracked(value, Arithmetic(name, expression_of(left), expression_of(right)), origin.notice)

    def forward(self: Tracked, other: Any) -> Any:
        if isinstance(other, float):
            return getattr(float(self.number()), f"__{name}__")(other)
        return combine(self, other, self) if _is_plain_or_tracked(other) else NotImplemented

    def backward(self: Tracked, other: Any) -> Any:
        return combine(other, self, self) if _is_plain_or_tracked(other) else NotImplemented

    setattr(Tracked, f"__{name}__", forward)
    setattr(Tracked, f"__r{name}__", backward)


def _install_comparison(name: str) -> None:
    """Let `Tracked` tell what it is compared with: the code goes another way where the outcome changes."""
    plain = getattr(int, name)

    def compare(self: Tracked, other: Any) -> Any:
        if isinstance(other, float):
            return getattr(float(self.number()), name)(other)
        if isinstance(other, int):
            self.notice(Arithmetic("compare", self.expression, expression_of(other)), "left")
        return plain(self, other)

    setattr(Tracked, name, compare)


for _name in _OPERATORS.keys() - {"compare"}:
    _install_operator(_name)
for _name in _COMPARISONS:
    _install_comparison(_name)


def _is_plain_or_tracked(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def expression_of(value: int) -> Expression:
    """The origin of an integer: an expression, or the integer itself where nothing is known."""
    return value.expression if isinstance(value, Tracked) else int(value)


def evaluate(expression: Expression, value_of: Callable[[Attribute | Size], int]) -> int:
    """The value of an expression; raises `ZeroDivisionError` as Python would."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Arithmetic):
        left, right = evaluate(expression.left, value_of), evaluate(expression.right, value_of)
        return _OPERATORS[expression.operator](left, right)
    return value_of(expression)


def sources(expression: Expression) -> Iterator[Attribute | Size]:
    """The attributes and sizes in an expression."""
    if isinstance(expression, Arithmetic):
        yield from sources(expression.left)
        yield from sources(expression.right)
    elif isinstance(expression, Attribute | Size):
        yield expression


def integer_attributes(module: nn.Module) -> Iterator[tuple[str | int, ...]]:
    """Paths to the integers that a module keeps as attributes, also inside tuples, lists and dicts."""
    for name, value in vars(module).items():
        if name.startswith("_") and name.endswith(("_hooks", "_modules", "_parameters", "_buffers")):
            continue
        yield from _integers(value, (name,))


def _integers(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if type(value) is int:
        if value > 1:
            yield path
    elif type(value) is dict and path == (CODE_SIZES,):
        yield from ((CODE_SIZES, site) for site in value)
    elif type(value) in (tuple, list) and len(value) <= 16 and len(path) < 3:
        for index, item in enumerate(value):
            yield from _integers(item, (*path, index))
    elif type(value) is dict and len(value) <= 16 and len(path) < 3:
        for key, item in value.items():
            if type(key) in (str, int):
                yield from _integers(item, (*path, key))


def read_path(module: nn.Module, path: tuple[str | int, ...]) -> Any:
    """The value at `path`, which may be a site in the module's code (`tracker.rewriting`)."""
    if path[0] == CODE_SIZES:
        return size_at(module, str(path[1]))
    value: Any = vars(module)[str(path[0])]
    for step in path[1:]:
        value = value[step]
    return value


def write_path(module: nn.Module, path: tuple[str | int, ...], new: int) -> None:
    """Set the integer at `path`; tuples, lists and dicts on the way are rebuilt, never changed in place.

    At a site in the module's code, the module gets a class of its own (`tracker.rewriting`), as does one that cannot
    follow its integers (`tracker.attention`).
    """
    if path[0] == CODE_SIZES:
        resize(module, str(path[1]), new)
        return
    let_follow(module)
    name = str(path[0])
    vars(module)[name] = _replaced(vars(module)[name], path[1:], new)


def _replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    step, *rest = path
    if isinstance(value, dict):
        return {**value, step: _replaced(value[step], tuple(rest), new)}
    return type(value)(_replaced(v, tuple(rest), new) if i == step else v for i, v in enumerate(value))
