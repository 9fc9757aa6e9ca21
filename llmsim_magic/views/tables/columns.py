"""Columns of a table: exact numbers and texts, with NA for what is missing."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from llmsim_magic.analyses.cost.module_costs import CostSum
from llmsim_magic.records.trace.trace import Scalar

_LARGEST = 2**60  # in all: so a column, and the sum of a few, stay within 64 bits
SPLIT = ("bytes_weights", "bytes_activations", "bytes_cache")
_SPENT = ("elementwise_ops", "causal_skippable_flops", "bytes_read", "bytes_written", *SPLIT)


def integers(values: Iterable[int | None]) -> "pd.api.extensions.ExtensionArray":
    """Whole numbers with NA; exact Python ones where 64 bits do not hold their sum."""
    given = list(values)
    known = [0 if number is None else number for number in given]
    if sum(known) > _LARGEST:
        return pd.array([pd.NA if number is None else number for number in given], dtype="object")
    missing = np.fromiter((number is None for number in given), bool, len(given))
    return pd.arrays.IntegerArray(np.array(known, dtype=np.int64), missing)


def numbers(values: Iterable[float | None]) -> "pd.api.extensions.ExtensionArray":
    """Fractional numbers with NA."""
    given = list(values)
    known = np.array([0.0 if number is None else number for number in given], dtype=np.float64)
    missing = np.fromiter((number is None for number in given), bool, len(given))
    return pd.arrays.FloatingArray(known, missing)


def cost_columns(spent: Iterable[CostSum]) -> dict[str, object]:
    """Work and traffic beside the FLOPs, and the FLOPs for each byte."""
    each = list(spent)
    columns: dict[str, object] = {
        name: integers([getattr(one, name) for one in each]) for name in _SPENT
    }
    columns["arithmetic_intensity"] = numbers([one.arithmetic_intensity for one in each])
    return columns


def size(attributes: dict[str, Scalar], name: str) -> int | None:
    value = attributes.get(name)
    return value if isinstance(value, int) else None


def texts(values: Iterable[str | None]) -> list[object]:
    return [pd.NA if value is None else value for value in values]


def ancestors(path: str) -> Iterable[str]:
    """The path, its parents, and the model itself."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
