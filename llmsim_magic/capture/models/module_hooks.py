"""Which hooks of a live module its copy has: those of the model's own code, not the user's."""

import copy
import inspect
import sys
import sysconfig
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.records.errors import safe_str

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
_WEIGHT_HOOKS = "torch.nn.utils"  # by which torch computes a weight, such as weight norm
_NO_MODEL = frozenset({"torch", "builtins"})


class CopiedHooks:
    """The hooks of a live module and its submodules, and those that a copy keeps.

    A model may install hooks itself, at its first forward, and remember that it has: its copy would
    not install them again. Kept are hooks that the model's own code defines: a class of the model,
    a function that the class calls, or the library that the class comes from, such as transformers'
    capture of hidden states.

    Args:
        module: The live module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.dropped = 0
        self._kept: list[OrderedDict[int, Any]] = []
        self._owners = _Owners(module)
        self._module = module

    def fill(self, memo: dict[int, Any]) -> None:
        """Fill the memo of `copy.deepcopy`, so that a copy has the kept hooks alone.

        Args:
            memo: Copies by the id of their originals.
        """
        for submodule in self._module.modules():
            for kind in _HOOKS:
                hooks = getattr(submodule, kind)
                kept = OrderedDict((key, hook) for key, hook in hooks.items() if self._keeps(hook))
                self.dropped += (len(hooks) - len(kept)) * ("forward" in kind)
                self._kept.append(kept)
                memo[id(hooks)] = kept

    def rebind(self, memo: dict[int, Any], rebound: Callable[[FunctionType], Any]) -> None:
        """Let the kept hooks refer to the copied modules.

        Args:
            memo: Copies by the id of their originals, once all modules are copied.
            rebound: Returns a copy of a function whose closure refers to the copied modules.
        """
        for hooks in self._kept:
            for key, hook in hooks.items():
                is_function = isinstance(hook, FunctionType)
                hooks[key] = rebound(hook) if is_function else copy.deepcopy(hook, memo)

    def _keeps(self, hook: Any) -> bool:
        module, name = _home(_code(hook))
        return module.startswith(_WEIGHT_HOOKS) or self._owners.define(module, name)


class _Owners:
    """The code of a model: its classes, the functions that they call, and their libraries."""

    def __init__(self, module: torch.nn.Module) -> None:
        classes = {each for part in module.modules() for each in type(part).__mro__}
        homes = {each: _home(each) for each in classes}
        self._libraries = set(_libraries(home for home, _ in homes.values()))
        own = [each for each in classes if _top(homes[each][0]) not in self._libraries | _NO_MODEL]
        self._functions = set(_called(own))
        self._bodies = {(home, f"{name}.") for home, name in map(_home, own)}
        self._bodies |= {(home, f"{name}.<locals>.") for home, name in self._functions}

    def define(self, module: str, name: str) -> bool:
        """Whether the model's code defines what has this qualified name."""
        if _top(module) in self._libraries or (module, name) in self._functions:
            return True
        return any(module == home and name.startswith(body) for home, body in self._bodies)


def _called(classes: Iterable[type[Any]]) -> Iterator[tuple[str, str]]:
    """The homes of the functions that methods of classes name, such as one that adds hooks."""
    for value in (value for each in classes for value in vars(each).values()):
        if isinstance(value, FunctionType):
            method = inspect.unwrap(value)
            named = (method.__globals__.get(name) for name in method.__code__.co_names)
            yield from (_home(each) for each in named if isinstance(each, FunctionType))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _libraries(modules: Iterable[str]) -> Iterator[str]:
    """The top packages of modules that are installed, rather than a file of the user's."""
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    for name in set(map(_top, modules)) - _NO_MODEL:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and file.startswith(installed):
            yield name


def _code(hook: Any) -> Any:
    """The function or class that a hook runs."""
    while isinstance(hook, partial):
        hook = hook.func
    if isinstance(hook, MethodType):
        hook = hook.__func__
    return hook if isinstance(hook, FunctionType) else type(hook)


def _home(code: Any) -> tuple[str, str]:
    """The module that defines a function or class, and its qualified name in there."""
    return safe_str(code.__module__), safe_str(code.__qualname__)
