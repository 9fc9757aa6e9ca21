"""Find what a process has changed in torch and transformers since it imported them.

Libraries replace functions and classes of transformers by faster ones, and users register classes
of their own. A record made in such a process is that of other code than what is installed.
Imports neither torch nor transformers.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_CHECKED = ("transformers.", "torch.nn.functional", "torch.nn.modules.")
# Modules of transformers that no forward pass calls.
_UNUSED = re.compile(r"tokeniz|process|image_|video_|audio_|generation|train|pipeline|data|chat")
# Packages that define, decorate and validate what torch and transformers call.
_TRUSTED = (
    "torch",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "kernels",
    "safetensors",
    "typing_extensions",
)
# Transformers registers the classes of a repository that it runs, each for its own config.
_KNOWN = (*_TRUSTED, "transformers_modules")
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")
# Where attention functions and classes are registered: attributes of an object or of its class.
_REGISTRIES = ("_extra_content", "_global_mapping", "_local_mapping")


def changed_code() -> str | None:
    """The name of something that is not as its library defines it; None if nothing is changed.

    Checks the functions, classes and registries of the modules that are loaded; what was checked
    before and is still the same object is not looked at again.
    """
    trusted = _trusted_folders()
    for module_name, module in sys.modules.copy().items():
        if not module_name.startswith(_CHECKED) or _UNUSED.search(module_name):
            continue
        known = _checked.get(module_name)
        if known is not None and known.is_current():
            continue
        for name, value in vars(module).copy().items():
            if name != "__builtins__" and _is_changed(module, name, value, trusted):
                return f"{module_name}.{name}"
        _checked[module_name] = _Checked.of(module)
    return None


@dataclass(frozen=True, slots=True)
class _Checked:
    """The namespaces of a module, and all objects in them when they were checked."""

    namespaces: tuple[Mapping[str, Any], ...]
    objects: tuple[tuple[Any, ...], ...]  # kept alive, so that their ids stay theirs
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: ModuleType) -> "_Checked":
        values = [value for name, value in vars(module).items() if name != "__builtins__"]
        own = [vars(each) for each in values if _is_defined_in(each, module)]
        held = [held for each in values for held in _registries(each)]
        namespaces = (vars(module), *own, *held)
        objects = tuple(tuple(_values(each)) for each in namespaces)
        return cls(namespaces, objects, tuple(tuple(map(id, each)) for each in objects))

    def is_current(self) -> bool:
        """Whether every namespace still has the same objects."""
        return all(
            tuple(map(id, _values(namespace))) == ids
            for namespace, ids in zip(self.namespaces, self.ids, strict=True)
        )


_checked: dict[str, _Checked] = {}


def _is_changed(module: ModuleType, name: str, value: Any, trusted: tuple[str, ...]) -> bool:
    """Whether a global of a module, a method of it or a value in it is of another package."""
    if _is_defined_in(value, module):
        return any(_is_foreign(each, trusted) for each in vars(value).values())
    if isinstance(value, (type, FunctionType)):
        return _is_foreign(value, trusted) and _defines(module, name)
    return any(_is_foreign(each, trusted) for each in _held(value))


def _is_foreign(value: Any, trusted: tuple[str, ...]) -> bool:
    """Whether a function or class is neither of a trusted package nor of Python itself."""
    if isinstance(value, type):
        return not _is_known(value.__module__)
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if not isinstance(value, FunctionType):
        return False
    file = value.__code__.co_filename
    if file.startswith(trusted) or (file == "<string>" and value.__name__.startswith("__")):
        return False  # dataclasses generate methods such as `__init__` from strings
    return not file.startswith(_STANDARD_LIBRARY) or bool(_INSTALLED.search(file))


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def _held(value: Any) -> Iterator[Any]:
    """What a dictionary or a registry holds."""
    for registry in _registries(value):
        for each in dict.values(registry):
            yield from each if isinstance(each, tuple) else (each,)


def _registries(value: Any) -> Iterator[dict[Any, Any]]:
    """The dictionaries of a registry of transformers; a dictionary is one itself."""
    if isinstance(value, dict):
        yield value
    if type(value).__module__.startswith("transformers."):
        for owner in (type(value), value):
            for name in _REGISTRIES:
                held = getattr(owner, "__dict__", {}).get(name)
                if isinstance(held, dict):
                    yield held


def _values(namespace: Mapping[str, Any]) -> Iterable[Any]:
    """The values of a namespace, without the code of a lazy mapping's class."""
    return dict.values(namespace) if isinstance(namespace, dict) else namespace.values()


def _is_known(module_name: str) -> bool:
    package = module_name.partition(".")[0]
    return package in _KNOWN or package in sys.stdlib_module_names


def _trusted_folders() -> tuple[str, ...]:
    """Beginnings of the names of files whose code belongs in torch or transformers."""
    found = ["<frozen "]
    for name in _TRUSTED:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            is_package = os.path.basename(file) == "__init__.py"
            found.append(os.path.dirname(file) + os.sep if is_package else file)
    return tuple(found)


def _defines(module: ModuleType, name: str) -> bool:
    """Whether the source of a module has a function or class of this name; else it imports it."""
    return name in _definitions(getattr(module, "__file__", None) or "")


@cache
def _definitions(file: str) -> frozenset[str]:
    with suppress(OSError):
        source = Path(file).read_text("utf-8", "replace")
        return frozenset(re.findall(r"^(?:def|class) (\w+)", source, re.MULTILINE))
    return frozenset()
