"""Clear the state that the last forward left in a copied module, as before a first forward."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import held_tensors
from llmsim_magic.capture.replay.layer_state import is_state

_INTERNAL = frozenset(vars(torch.nn.Module()))
_ADDING = frozenset({"append", "extend", "insert", "setdefault", "update"})
_SETTINGS = frozenset({"config", "training"})  # attributes that no forward changes


def clear_last_pass(model: torch.nn.Module) -> None:
    """Empty the attributes in which forwards of a module keep tensors from pass to pass.

    Such an attribute holds a tensor, is None or empty after the constructor of its class, and is
    set by the forward of the class or by a method that the forward calls. An attribute that only
    other methods set was set by the user, and stays. So does one that the forward sets only under
    a condition on another attribute, such as a flag that a table was computed: the flag stays too.

    Args:
        model: A copy of a live module, whose attributes are changed.
    """
    states: dict[type[Any], dict[str, Any]] = {}
    for module in model.modules():
        kind = type(module)
        names = [name for name, value in _attributes(module) if _holds_tensor(value)]
        if not names or kind.__module__.partition(".")[0] == "torch":
            continue
        if kind not in states:
            states[kind] = _states(kind)
        for name in states[kind].keys() & names:
            _clear(module, name, states[kind][name])


def _attributes(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in vars(module).items() if name not in _INTERNAL)
    yield from module._buffers.items()


def _holds_tensor(value: Any) -> bool:
    is_searched = isinstance(value, (torch.Tensor, list, tuple, dict)) or is_state(value)
    return is_searched and any(held_tensors("", value))


def _clear(module: torch.nn.Module, name: str, initial: Any) -> None:
    value = getattr(module, name)
    if initial is not None and isinstance(value, (list, dict, set)):
        value.clear()  # another object may refer to it
    else:
        setattr(module, name, initial)


def _states(kind: type[Any]) -> dict[str, Any]:
    """The attributes of a class that its forward sets, with the empty value each starts with."""
    stored = _stored_by_forward(kind)
    initial: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        defaults = vars(base)
        initial |= {name: None for name in stored & defaults.keys() if defaults[name] is None}
        constructor = _parsed(defaults.get("__init__"))
        for name, value in _assigned(constructor) if constructor is not None else ():
            initial.pop(name, None)
            if _is_empty(value):
                initial[name] = ast.literal_eval(value)
    return {name: value for name, value in initial.items() if name in stored}


def _assigned(constructor: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """The attributes that a constructor sets, and buffers that it registers, with their values."""
    for node in ast.walk(constructor):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((name, node.value) for name in map(_own_attribute, targets) if name)
        elif isinstance(node, ast.Call) and _own_attribute(node.func) == "register_buffer":
            given = [*node.args, *(keyword.value for keyword in node.keywords)][:2]
            if len(given) == 2 and isinstance(given[0], ast.Constant):
                yield str(given[0].value), given[1]


def _is_empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return value.value is None
    if isinstance(value, ast.Dict):
        return not value.keys
    return isinstance(value, (ast.List, ast.Tuple)) and not value.elts


def _stored_by_forward(kind: type[Any]) -> set[str]:
    """The attributes that the forward of a class sets, or a method of the class that it calls."""
    stored: set[str] = set()
    waiting, done = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        for base in kind.__mro__:
            method = _parsed(vars(base).get(name))
            if method is not None:
                found = _Stores(method.body)
                stored |= found.stored
                waiting += found.called
    return stored


def _parsed(function: Any) -> ast.FunctionDef | None:
    """The syntax tree of a method; None for anything else, or where its source is not known."""
    try:
        method = inspect.unwrap(function) if callable(function) else None
        if not isinstance(method, FunctionType):
            return None
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, ValueError, SyntaxError):  # such as of a class made by exec
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


class _Stores(ast.NodeVisitor):
    """The attributes of `self` that statements set or add to, and the methods that they call.

    Statements under a condition on another attribute are left out.
    """

    def __init__(self, statements: Iterable[ast.stmt]) -> None:
        self.stored: set[str] = set()
        self.called: list[str] = []
        self._conditions: frozenset[str] = frozenset()
        self._visit_block(statements)

    def _visit_block(self, statements: Iterable[ast.stmt]) -> None:
        """Visits statements; those behind a conditional return stand under its condition too."""
        outer = self._conditions
        for statement in statements:
            self.visit(statement)
            if isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Return):
                self._conditions |= _read(statement.test)
        self._conditions = outer

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        outer = self._conditions
        self._conditions |= _read(node.test)
        self._visit_block(node.body)
        self._visit_block(node.orelse)
        self._conditions = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store):
            self._store(_own_attribute(node))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Store):
            self._store(_own_attribute(node.value))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute):
            if function.attr in _ADDING:
                self._store(_own_attribute(function.value))
            elif _is_self_or_super(function.value) and not self._conditions:
                self.called.append(function.attr)
        self.generic_visit(node)

    def _store(self, name: str | None) -> None:
        if name is not None and self._conditions <= {name}:
            self.stored.add(name)


def _read(condition: ast.expr) -> frozenset[str]:
    """The attributes of `self` that a condition reads and that a forward may change."""
    names = {_own_attribute(node) for node in ast.walk(condition)}
    return frozenset(name for name in names if name is not None) - _SETTINGS


def _own_attribute(node: ast.AST) -> str | None:
    """The name of an attribute of `self`."""
    if isinstance(node, ast.Attribute) and _is_self_or_super(node.value):
        return node.attr
    return None


def _is_self_or_super(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id == "self"
