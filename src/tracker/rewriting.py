"""The author's code with a size read from the module instead.

`resize(module, site, size)` gives one module a class of its own, a subclass of its class, in which the expression at
`site` reads `module.code_sizes[site]`. Nothing else changes: the class has the same name, every other line is the
author's, tracebacks and debuggers show their file. It is ordinary Python, so it compiles, exports, copies and pickles
as the model did. The class itself stays as it is for all other modules.
"""

from __future__ import annotations
import __future__

import ast
import copy
from collections.abc import Mapping
from functools import cache
from inspect import getattr_static
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

from tracker.code_sites import Definition, Site, Span, Step, beneath, definition_of, digest_of
from tracker.errors import PlanError

CODE_SIZES = "code_sizes"
_MODULE = "_module"  # how a function that is no method receives the module
_FUTURE = 0
for _feature in __future__.all_feature_names:
    _FUTURE |= getattr(__future__, _feature).compiler_flag


def size_at(module: nn.Module, site: str) -> int:
    """The size at a site of a module's code: the one it was given, else what the author's expression comes to."""
    given = vars(module).get(CODE_SIZES, {})
    return int(given[site] if site in given else _parsed(site).value)


def resize(module: nn.Module, site: str, size: int) -> None:
    """Let the expression at `site` in the code of `module` be `size`.

    Raises `PlanError` where the code is not the one that the site was found in.
    """
    sizes = {**vars(module).get(CODE_SIZES, {}), site: size}
    module.__class__ = _rewritten(author_class(type(module)), tuple(sorted(sizes)))
    vars(module)[CODE_SIZES] = sizes


def can_resize(module: nn.Module, site: str) -> bool:
    """Whether the code of `module` can be given another size at `site`."""
    try:
        _rewritten(author_class(type(module)), (site,))
    except PlanError:
        return False
    return True


def author_class(kind: type) -> type:
    """The class as its author wrote it, for a class made here or any other."""
    return vars(kind).get("_author_class", kind)  # type: ignore[no-any-return]


def _parsed(text: str) -> Site:
    site = Site.parse(text)
    if site is None:
        raise PlanError(f"'{text}' names no place in a module's code.", hint="Discover the model again.")
    return site


@cache
def _rewritten(author: type, sites: tuple[str, ...]) -> type:
    """A subclass of `author` whose methods read their sizes at `sites` from the module."""
    edits: dict[tuple[str, ...], _Edits] = {}
    functions: dict[tuple[str, ...], FunctionType] = {}
    for text in sites:
        site = _parsed(text)
        path: tuple[str, ...] = ()
        function = _method(author, site.steps[0].function)
        for step, following in zip(site.steps, (*site.steps[1:], None), strict=True):
            path = (*path, step.function)
            functions[path] = function
            here = edits.setdefault(path, _Edits(function))
            if following is None:
                here.sizes[_absolute(step, function)] = text
            else:
                here.calls[_absolute(step, function)] = _attribute((*path, following.function))
                function = _called(function, step, following.function)
        if digest_of([functions[path[: n + 1]] for n in range(len(path))]) != site.digest:
            raise PlanError(
                f"The code of {author.__name__}.{site.steps[0].function} is not the one that was pruned.",
                hint="Install the version of the library that the model was pruned with, or prune it again.",
            )
    own: dict[str, Any] = {"_author_class": author, "__reduce_ex__": _reduce, "__doc__": author.__doc__}
    for path, edit in edits.items():
        new = edit.compiled(method=len(path) == 1)
        if len(path) == 1:
            own[path[0]] = _with_replaced(getattr_static(author, path[0]), edit.function, new)
        else:
            own[_attribute(path)] = staticmethod(new)
    own.update(__module__=author.__module__, __qualname__=author.__qualname__)
    return type(author.__name__, (author,), own)


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """How such a module is copied and pickled: its author's class and the sites, from which the class is made again."""
    return _empty, (author_class(type(module)), tuple(sorted(vars(module)[CODE_SIZES]))), vars(module)


def _empty(author: type, sites: tuple[str, ...]) -> Any:
    kind: Any = _rewritten(author, sites)
    return kind.__new__(kind)


def _attribute(path: tuple[str, ...]) -> str:
    return "_resized_" + "_".join(path)


def _method(author: type, name: str) -> FunctionType:
    """The function that the author wrote as a method, beneath its decorators."""
    found = [f for f in beneath(getattr_static(author, name, None)) if f.__code__.co_name == name]
    if not found or definition_of(found[0].__code__) is None:
        raise PlanError(
            f"{author.__name__}.{name}, which has to compute another size, is not to be found as source code.",
            hint="Install the library that the model comes from as source.",
        )
    return found[0]


def _called(caller: FunctionType, step: Step, name: str) -> FunctionType:
    """The function that a call in `caller` goes to, looked up as the call itself would."""
    span, call = _absolute(step, caller), None
    for node in ast.walk(_definition(caller)):
        if isinstance(node, ast.Call) and _span(node) == span:
            call = node
    target = _value(call.func, _names(caller)) if call is not None else None
    found = [f for f in beneath(target) if f.__code__.co_name == name]
    if not found:
        raise PlanError(
            f"{caller.__qualname__} no longer calls `{name}` where it did when the model was pruned.",
            hint="Install the version of the library that the model was pruned with, or prune it again.",
        )
    return found[0]


def _names(function: FunctionType) -> Mapping[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr_static(_value(node.value, names), node.attr, None)
    return None


def _definition(function: FunctionType) -> Definition:
    found = definition_of(function.__code__)
    if found is None:
        raise PlanError(
            f"The source code of {function.__qualname__} is not to be found.",
            hint="Install the library that the model comes from as source.",
        )
    return found


def _absolute(step: Step, function: FunctionType) -> Span:
    line, column, last, stop = step.span
    first = function.__code__.co_firstlineno
    return line + first, column, last + first, stop


def _span(node: ast.expr) -> Span:
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


class _Edits(ast.NodeTransformer):
    """What changes in a function: expressions that become a size of the module, calls that go to a changed function."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.sizes: dict[Span, str] = {}
        self.calls: dict[Span, str] = {}
        self._module = _MODULE

    def compiled(self, *, method: bool) -> FunctionType:
        """The changed function. One that is no method takes the module as a keyword argument."""
        definition = copy.deepcopy(_definition(self.function))
        code = self.function.__code__
        self._module = code.co_varnames[0] if method else _MODULE
        definition.decorator_list = []
        definition.body = [self.visit(statement) for statement in definition.body]
        if not method:
            definition.args.kwonlyargs.append(ast.arg(_MODULE))
            definition.args.kw_defaults.append(None)
        new = FunctionType(
            _compiled(definition, self.function),
            self.function.__globals__,
            self.function.__name__,
            self.function.__defaults__,
            self.function.__closure__,
        )
        new.__kwdefaults__ = self.function.__kwdefaults__
        new.__qualname__, new.__doc__ = self.function.__qualname__, self.function.__doc__
        vars(new).update(vars(self.function))
        return new

    def visit(self, node: ast.AST) -> Any:
        """Change this node, or look inside."""
        if isinstance(node, ast.expr) and (site := self.sizes.get(_span(node))) is not None:
            sizes = ast.Attribute(self._own(), CODE_SIZES, ast.Load())
            return _at(ast.Subscript(sizes, ast.Constant(site), ast.Load()), node)
        if isinstance(node, ast.Call) and (attribute := self.calls.get(_span(node))) is not None:
            node.func = _at(ast.Attribute(self._own(), attribute, ast.Load()), node.func)
            node.keywords.append(ast.keyword(_MODULE, _at(self._own(), node)))
        return super().generic_visit(node)

    def _own(self) -> ast.Name:
        return ast.Name(self._module, ast.Load())


def _at(new: Any, old: ast.AST) -> Any:
    return ast.fix_missing_locations(ast.copy_location(new, old))


def _compiled(definition: Definition, function: FunctionType) -> CodeType:
    """The code of a changed definition, where names mean what they meant: in the same class, with the same closure."""
    free = function.__code__.co_freevars
    inner: ast.stmt = definition
    *_, scope, _ = ("", *function.__qualname__.split("."))
    if scope and scope != "<locals>":
        inner = ast.ClassDef(scope, [], [], [definition], [])
    arguments = ast.arguments([], [ast.arg(name) for name in free if name != "__class__"], None, [], [], None, [])
    if "__class__" in free and not isinstance(inner, ast.ClassDef):
        inner = ast.ClassDef("_", [], [], [definition], [])
    outer = ast.FunctionDef("_outer", arguments, [inner], [])
    tree = ast.fix_missing_locations(ast.Module([outer], []))
    flags = function.__code__.co_flags & _FUTURE
    code = compile(tree, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    found = _find(code, function.__code__.co_name, definition)
    if found is None or found.co_freevars != free:
        raise PlanError(
            f"{function.__qualname__} cannot be compiled with another size.", hint="Please report it with the model."
        )
    return found.replace(co_firstlineno=function.__code__.co_firstlineno)  # decorators count


def _find(code: CodeType, name: str, definition: Definition) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name and constant.co_firstlineno == definition.lineno:
                return constant
            found = _find(constant, name, definition)
            if found is not None:
                return found
    return None


def _with_replaced(value: Any, old: FunctionType, new: FunctionType) -> Any:
    """A decorated function with `new` in place of `old` beneath the decorators."""
    if value is old:
        return new
    if not isinstance(value, FunctionType) or not any(f is old for f in beneath(value)):
        return value
    closure = tuple(CellType(_with_replaced(cell.cell_contents, old, new)) for cell in value.__closure__ or ())
    again = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
    again.__kwdefaults__ = value.__kwdefaults__
    vars(again).update({**vars(value), **({"__wrapped__": new} if "__wrapped__" in vars(value) else {})})
    return again
