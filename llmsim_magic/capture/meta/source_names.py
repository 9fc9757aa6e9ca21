"""Read what the source of a module says about the names in it, without running it."""

import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any


@cache
def source_text(file: str) -> str:
    """The source of a module; empty if it cannot be read."""
    with suppress(OSError):
        return Path(file).read_text("utf-8", "replace")
    return ""


@dataclass(frozen=True, slots=True)
class SourceNames:
    """What lines of a module's source say about names, without running it.

    Attributes:
        imported: the module that each imported name is imported from.
        assigned: the names that are assigned, or under which something else is imported.
        defined: the names of functions and classes.
        methods: the names of the methods that each class defines.
        constants: the plain values that each class gives, for modules of models.
    """

    imported: Mapping[str, str]
    assigned: frozenset[str]
    defined: frozenset[str]
    methods: Mapping[str, frozenset[str]]
    constants: Mapping[str, Mapping[str, Any]]


_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+)?import[ \t]+(\([^)]*\)|[^\n]+)", re.MULTILINE
)
_ASSIGNED = re.compile(r"^[ \t]*(?:\w+\.)*(\w+)(?:: [^=\n]+)? = |\bas (\w+)", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async )?(?:def|class) (\w+)", re.MULTILINE)
_METHOD = r"^    (?:async )?def (\w+)()"
_CONSTANT = r"^    (\w+)(?:: [^=\n]+)? = (True|False|None|-?\d+|\"[^\"\\\n]*\")$"


@cache
def source_names(file: str) -> SourceNames:
    """The names in the source of a module."""
    text = source_text(file)
    imported = {
        name: package
        for package, names in _IMPORT.findall(text)
        for name in re.findall(r"\w+", names)
    }
    methods = {
        name: frozenset(method for method, _ in found)
        for name, found in _bodies(text, _METHOD).items()
    }
    constants = {
        name: {constant: ast.literal_eval(value) for constant, value in found}
        for name, found in _bodies(text, _CONSTANT).items()
    }
    assigned = frozenset(filter(None, chain.from_iterable(_ASSIGNED.findall(text))))
    defined = frozenset(_DEFINED.findall(text))
    return SourceNames(imported, assigned, defined, methods, constants)


def _bodies(text: str, line: str) -> dict[str, list[tuple[str, str]]]:
    """The two groups of each line that matches in a class body, by class."""
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for name, other, *groups in re.findall(rf"(?m)^class (\w+)|^([^\s#)])|{line}", text):
        if name or other:
            current = name
        elif current:
            found.setdefault(current, []).append((groups[0], groups[1]))
    return found
