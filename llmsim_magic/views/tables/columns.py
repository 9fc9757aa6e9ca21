"""Builds table columns: exact integers, floats and texts, with NA for missing values."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from llmsim_magic.analyses.cost.module_costs import CostSum
from llmsim_magic.records.trace.trace import Scalar

# A column whose sum stays below this fits int64, and so does the sum of a few such columns.
_MAX_INT64_SUM = 2**60
BYTES_BY_SOURCE = ("bytes_weights", "bytes_activations", "bytes_cache")
_COST_COLUMNS = (
    "elementwise_ops",
    "causal_skippable_flops",
    "bytes_read",
    "bytes_written",
    *BYTES_BY_SOURCE,
)
# Module attributes that get a column each; NA where a module lacks one.
FEATURE_COLUMNS = ("in_features", "out_features", "num_embeddings", "embedding_dim")


def integers(
    values: Iterable[int | None], total: int | None = None
) -> "pd.api.extensions.ExtensionArray":
    """Integers with NA for None; Python integers (dtype object) if their sum overflows int64.

    Args:
        values: the integers.
        total: the sum of the column, if rows will be repeated.
    """
    optional = list(values)
    filled = [0 if number is None else number for number in optional]
    if (sum(filled) if total is None else total) > _MAX_INT64_SUM:
        return pd.array(
            [pd.NA if number is None else number for number in optional], dtype="object"
        )
    is_missing = np.fromiter((number is None for number in optional), bool, len(optional))
    return pd.arrays.IntegerArray(np.array(filled, dtype=np.int64), is_missing)


def floats(values: Iterable[float | None]) -> "pd.api.extensions.ExtensionArray":
    """Floats with NA for None."""
    optional = list(values)
    filled = np.array([0.0 if number is None else number for number in optional], dtype=np.float64)
    is_missing = np.fromiter((number is None for number in optional), bool, len(optional))
    return pd.arrays.FloatingArray(filled, is_missing)


def texts(values: Iterable[str | None]) -> list[object]:
    """Texts with NA for None."""
    return [pd.NA if value is None else value for value in values]


def cost_columns(costs: Iterable[CostSum]) -> dict[str, object]:
    """The cost columns other than FLOPs: elementwise work, bytes, FLOPs per byte."""
    rows = list(costs)
    columns: dict[str, object] = {
        name: integers([getattr(row, name) for row in rows]) for name in _COST_COLUMNS
    }
    columns["arithmetic_intensity"] = floats([row.arithmetic_intensity for row in rows])
    return columns


def integer_attribute(attributes: dict[str, Scalar], name: str) -> int | None:
    """A module's attribute if it is an integer; None if it is missing or of another type."""
    value = attributes.get(name)
    return value if isinstance(value, int) else None


def ancestors(path: str) -> Iterable[str]:
    """The path itself, then its parents, then "" for the model."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
