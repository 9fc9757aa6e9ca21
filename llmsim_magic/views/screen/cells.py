"""The cells of a column as text."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from llmsim_magic.records.printable import printable
from llmsim_magic.views import units
from llmsim_magic.views.screen.columns import Kind

_PERCENT = re.compile(r"(\w) (\d+ %)$")
# The types of most cells.
_NEVER_MISSING = frozenset({str, int, np.int64, bool, np.bool_, list, tuple})
_MANY_SHAPES = 24  # characters of shapes from which only the first is written


def format_cells(values: Sequence[Any], kind: Kind) -> list[str]:
    """Each value as text on one line; empty for a missing value."""
    return ["" if is_missing(value) else printable(_format(value, kind)) for value in values]


def exact_cells(values: Sequence[Any]) -> list[str]:
    """Each value with all its digits or all its shapes; empty for a missing value or a text."""
    return [_exact(value) for value in values]


def sizes(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, zero for a missing one; None if one is no number."""
    found = [0.0 if is_missing(value) else value for value in values]
    if all(isinstance(value, (int, float, np.number)) for value in found):
        return [float(value) for value in found]
    return None


def _exact(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        is_nested = bool(value) and isinstance(value[0], (list, tuple))
        return units.shapes(value) if is_nested else ""
    if is_missing(value) or isinstance(value, (str, bool, np.bool_)):
        return ""
    if isinstance(value, (int, np.integer)):
        return units.count(int(value))
    return f"{value:.9g}" if isinstance(value, (float, np.floating)) else ""


def quantity_text(value: Any, unit: str) -> str:
    """A value of a table that names the unit of each row, such as `bytes` or `FLOPs`."""
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return printable(value)
    name = unit.partition(",")[0]
    if name in _BY_UNIT:
        return _BY_UNIT[name](value)
    text = units.whole(value) if value == int(value) else units.si(value)
    return f"{text} {name}".rstrip() if name not in ("", "calls") else text


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: NA, NaN or None; a list is never missing."""
    kind = type(value)
    if kind in _NEVER_MISSING:
        return False
    if kind is float or kind is np.float64:
        return bool(value != value)  # noqa: PLR0124 - only NaN differs from itself
    return not isinstance(value, (list, tuple)) and bool(pd.isna(value))


def _format(value: Any, kind: Kind) -> str:
    if isinstance(value, (list, tuple)):
        return _listed(value)
    if isinstance(value, str):
        return _PERCENT.sub(r"\1, \2", value) if kind == "text" else value
    if kind == "bool" or pd.api.types.is_bool(value):
        return "yes" if value else "no"
    if kind in _BY_KIND:
        return _BY_KIND[kind](value)
    return _number(value) if isinstance(value, (int, float, np.number)) else str(value)


def _listed(value: Sequence[Any]) -> str:
    """`[1, 128, 1024]`; of many shapes the first and how many more."""
    if not value or not isinstance(value[0], (list, tuple)):
        is_shape = isinstance(value, tuple)
        return units.shape(value) if is_shape else ", ".join(map(str, value))
    text = units.shapes(value)
    if len(text) <= _MANY_SHAPES or len(value) == 1:
        return text
    return f"{units.shape(value[0])} +{len(value) - 1}"


def _number(value: Any) -> str:
    if value == int(value):
        return units.whole(int(value))
    return units.si(value) if abs(value) >= 0.01 else f"{value:.2g}"


_BY_KIND: dict[str, Callable[[Any], str]] = {
    "asked": lambda value: units.count(int(value)),
    "whole": lambda value: units.whole(int(value)),
    "parameters": units.parameters,
    "bytes": units.nbytes,
    "si": units.si,
    "seconds": units.seconds,
    "rate": units.rate,
    "share": units.share,
    "number": _number,
}
_BY_UNIT: dict[str, Callable[[Any], str]] = {
    "parameters": units.parameters,
    "bytes": units.nbytes,
    "FLOPs": lambda value: units.si(value, "FLOPs"),
    "operations": lambda value: f"{units.si(value)} operations",
    "s": units.seconds,
}
