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
from functools import cache, partial, partialmethod
from importlib.util import resolve_name
from itertools import chain
from operator import attrgetter
from threading import Lock
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from llmsim_magic.capture.meta.source_names import source_names, source_text

_CHECKED = ("transformers.", "torch.nn.functional", "torch.nn.modules.")
_CHECKED_NAMES = ("torch", "torch.nn", "torch.functional", "torch._tensor")
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
_WRAPPERS = (staticmethod, classmethod, property, partial, partialmethod)
_CODE = (type, FunctionType, BuiltinFunctionType)


def changed_code() -> str | None:
    """The name of something that is not as its library defines it; None if nothing is changed.

    Checks the functions, classes and registries of the modules that are loaded; what was checked
    before and is still the same object is not looked at again.
    """
    return next((each.changed for each in _current() if each.changed is not None), None)


def changes() -> int:
    """0 if nothing is changed; else a number that no other state of the code had before.

    Models and traces made at one number are those of the same code.
    """
    global _last, _number
    found = tuple(each for each in _current() if each.changed is not None)
    with _lock:
        if found != _last:
            _last, _number = found, _number + 1
        return _number if found else 0


def _current() -> "list[_Checked]":
    """What is known of each loaded module, checked again where it is not what it was."""
    found = []
    trusted = _trusted_folders()
    for module_name, module in sys.modules.copy().items():
        if not _is_checked(module_name):
            continue
        known = _checked.get(module_name)
        if known is None or known.module is not module or not known.is_current():
            known = _checked[module_name] = _Checked.of(module, trusted)
        found.append(known)
    return found


@cache
def _is_checked(module_name: str) -> bool:
    if module_name in _CHECKED_NAMES:
        return True
    return module_name.startswith(_CHECKED) and not _UNUSED.search(module_name)


@dataclass(frozen=True, slots=True, eq=False)
class _Checked:
    """A module, its namespaces and all objects in them when they were checked.

    `codes` is the code of each of the functions, which may be replaced too. `changed` is the name
    of something that the module's source does not define so.
    """

    module: ModuleType
    namespaces: tuple[Mapping[str, Any], ...]
    objects: tuple[tuple[Any, ...], ...]
    functions: tuple[FunctionType, ...]
    codes: tuple[CodeType, ...]
    changed: str | None

    @classmethod
    def of(cls, module: ModuleType, trusted: tuple[str, ...]) -> "_Checked":
        values = [value for name, value in vars(module).items() if name != "__builtins__"]
        own = [vars(each) for each in values if _is_defined_in(each, module)]
        held = [held for each in values for held in _registries(each) if _holds_code(held)]
        namespaces = (vars(module), *own, *held)
        objects = tuple(tuple(_values(each)) for each in namespaces)
        every = chain.from_iterable(objects)
        functions = tuple(each for each in every if type(each) is FunctionType)
        codes = tuple(map(_code_of, functions))
        change = _first_change(module, trusted)
        return cls(module, namespaces, objects, functions, codes, change)

    def is_current(self) -> bool:
        """Whether every namespace still has the same objects, and every function its code."""
        try:  # the same object is equal without its `__eq__`, which another may have of any kind
            return self.codes == tuple(map(_code_of, self.functions)) and all(
                tuple(_values(namespace)) == known
                for namespace, known in zip(self.namespaces, self.objects, strict=True)
            )
        except Exception:
            return False


_code_of = attrgetter("__code__")
_checked: dict[str, _Checked] = {}
_last: tuple[_Checked, ...] = ()
_number = 0
_lock = Lock()


def _first_change(module: ModuleType, trusted: tuple[str, ...]) -> str | None:
    """The name of a global of a module, or of a class in it, that is not as in its source."""
    source = _Source(getattr(module, "__file__", None) or "", module.__package__ or "", trusted)
    for name, value in vars(module).copy().items():
        if name.startswith("__"):
            continue
        if isinstance(value, _WRAPPERS) or callable(value):
            if source.has_changed_global(name, value):
                return f"{module.__name__}.{name}"
            if _is_defined_in(value, module) and source.has_changed_class(value):
                return f"{module.__name__}.{name}"
        if any(source.has_changed_entry(name, *item) for item in _held(value)):
            return f"{module.__name__}.{name}"
    return None


@dataclass(frozen=True, slots=True)
class _Source:
    """What the source of a module says about the names in it; `trusted` are folders of code."""

    file: str
    package: str
    trusted: tuple[str, ...]

    def has_changed_class(self, cls: type) -> bool:
        """Whether an attribute of a class is not what the class body gives it."""
        attributes = vars(cls).copy()
        constants = source_names(self.file).constants.get(cls.__qualname__, {})
        return any(
            self._is_foreign(value)
            or not (isinstance(value, type) or self._is_named(name, value, cls))
            for name, value in attributes.items()
        ) or any(
            attributes.get(name, value) != value
            for name, value in constants.items()
            if isinstance(attributes.get(name), (bool, int, str, type(None)))
        )

    def has_changed_global(self, name: str, value: Any) -> bool:
        """Whether a function, a class or a callable is not the one of this name."""
        if not self._is_foreign(value):
            return not self._is_named(name, value)
        origin = source_names(self.file).imported.get(name)
        if origin is None or not (origin.startswith(".") or _is_known(origin)):
            return origin is None
        return not self._is_imported(name, value)

    def has_changed_entry(self, name: str, key: Any, value: Any) -> bool:
        """Whether an entry of a dictionary is foreign, or not the one that the source names."""
        if self._is_foreign(value):
            return True
        called = getattr(value, "__name__", None)
        if (
            called is None
            or type(key) is not str  # a member of an enumeration is named in the source otherwise
            or name not in source_names(self.file).assigned
        ):
            return False
        named = re.findall(rf"[\"']{re.escape(key)}[\"']\s*:([^\n]*)", source_text(self.file))
        return bool(named) and not any(called in re.findall(r"\w+", line) for line in named)

    def _is_foreign(self, value: Any) -> bool:
        """Whether a function, class or callable has code of a package that is not trusted."""
        return any(_is_foreign(each, self.trusted) for each in _layers(value))

    def _is_named(self, name: str, value: Any, owner: type | None = None) -> bool:
        """Whether a function or class is found by the name that the source gives it.

        Args:
            name: of a global, or of an attribute of `owner`.
            value: what is found by it.
            owner: the class that has it; it may copy a method of its bases.
        """
        layers = [each for each in _layers(value) if isinstance(each, _CODE)]
        names = source_names(self.file)
        if not layers:
            return owner is not None or name not in names.defined
        if "<locals>" in layers[-1].__qualname__:
            return True
        if owner is None:
            is_named = layers[-1].__name__.lstrip("_") == name.lstrip("_")
            is_defined = name in names.defined
        else:
            called = {f"{base.__qualname__}.{name}" for base in owner.__mro__}
            is_named = layers[-1].__qualname__ in called
            is_defined = name in names.methods.get(owner.__qualname__, ())
        if is_named or name in names.assigned:
            return True
        if any(_is_wrapper_of(each, name, self.file) for each in layers[:-1]):
            return True
        is_own = owner is not None or name not in names.imported
        return not is_defined and (is_own or self._is_imported(name, value))

    def _is_imported(self, name: str, value: Any) -> bool:
        """Whether a global is what the module that it is imported from has by this name."""
        origin = source_names(self.file).imported[name]
        with suppress(ImportError, ValueError):
            origin = resolve_name(origin, self.package)
        return getattr(sys.modules.get(origin), name, None) is value


def _is_wrapper_of(value: Any, name: str, file: str) -> bool:
    """Whether a module defines a function of this name that takes the place of an inherited one."""
    code = getattr(value, "__code__", None)
    return code is not None and (code.co_filename, code.co_name) == (file, name)


def _layers(value: Any) -> Iterator[Any]:
    """A value, and what it wraps, from the outermost to the innermost function."""
    yield value
    for _ in range(20):
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, (partial, partialmethod)):
            value = value.func
        elif not isinstance(value, type) and "__wrapped__" in getattr(value, "__dict__", ()):
            value = value.__wrapped__
        elif not isinstance(value, type) and hasattr(value, "_torchdynamo_inline"):
            value = value._torchdynamo_inline  # what `torch.jit.script` was given
        else:
            return
        yield value


def _is_foreign(value: Any, trusted: tuple[str, ...]) -> bool:
    """Whether a function, class or callable is neither of a trusted package nor of Python."""
    if isinstance(value, type):
        return not _is_known(value.__module__)
    if not isinstance(value, FunctionType):
        return callable(value) and not _is_known(type(value).__module__)
    file = value.__code__.co_filename
    if file.startswith(trusted) or (file == "<string>" and _is_special(value.__name__)):
        return False  # dataclasses generate methods such as `__init__` from strings
    return not file.startswith(_STANDARD_LIBRARY) or bool(_INSTALLED.search(file))


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    """Whether a value is a class of a module; of torch's own namespace, only the tensor counts."""
    if not isinstance(value, type) or value.__module__ != module.__name__:
        return False
    return module.__name__ not in _CHECKED_NAMES or value.__name__ == "Tensor"


def _held(value: Any) -> Iterator[tuple[Any, Any]]:
    """The keys of a dictionary or registry, and the functions and classes that it holds."""
    for registry in _registries(value):
        for key, each in [*dict.items(registry)]:
            first = each[0] if isinstance(each, tuple) and each else each
            if callable(first):
                yield key, first


def _holds_code(registry: dict[Any, Any]) -> bool:
    """Whether a dictionary has functions or classes, or is empty and may get some."""
    found = [*_values(registry)]
    return not found or any(callable(each) or isinstance(each, tuple) for each in found)


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
