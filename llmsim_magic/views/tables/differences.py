"""The structural difference of two models as a table."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from llmsim_magic.analyses.structure.module_tree import ModuleNode
from llmsim_magic.analyses.structure.structural_diff import Change, Value, structural_diff
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import integers

_ABSENT = "none"  # in a change, of what one of the models does not have


@defer_interrupt
def differences_table(first: Trace, second: Trace) -> pd.DataFrame:
    """One row per module of either model; identical layers are one, and so are modules that match.

    Args:
        first: a pass of the first model.
        second: a pass of the second model, with the same workload.

    Returns:
        A table with `status` (`same`, `changed`, `added` to or `removed` from the first model),
        columns `…_first` and `…_second` for each model, NA where it does not have the module, and
        `change`, what differs in words: `weight [1024, 3072] → [2048, 6144]`. Rows are in the order
        in which modules run. `params` are those of one layer.
    """
    rows = structural_diff(first, second)
    sides = {"first": [row.first for row in rows], "second": [row.second for row in rows]}
    columns: dict[str, object] = {"status": [row.status for row in rows]}
    for name, read in _TEXTS.items():
        for side, nodes in sides.items():
            columns[f"{name}_{side}"] = [pd.NA if node is None else read(node) for node in nodes]
    for name, count in _COUNTS.items():
        for side, nodes in sides.items():
            counts = [None if node is None else count(node) for node in nodes]
            columns[f"{name}_{side}"] = integers(counts)
    for name, listed in _LISTS.items():
        for side, nodes in sides.items():
            columns[f"{name}_{side}"] = [pd.NA if node is None else listed(node) for node in nodes]
    columns["change"] = ["; ".join(map(change_text, row.changes)) for row in rows]
    return pd.DataFrame(columns)


_TEXTS: dict[str, Callable[[ModuleNode], str]] = {
    "path": lambda node: node.place.path,
    "type": lambda node: node.type,
}
_COUNTS: dict[str, Callable[[ModuleNode], int]] = {
    "layers": lambda node: node.place.layers,
    "params": lambda node: node.params,
    "params_total": lambda node: node.params_total,
}
_LISTS: dict[str, Callable[[ModuleNode], list[Any]]] = {
    "weight_shapes": lambda node: list(node.shapes.values()),
    "layer_indices": lambda node: list(node.place.layer_indices),
}


def change_text(change: Change) -> str:
    """A change in words: `weight [1024, 3072] → [2048, 6144]`, `layers ×28 → ×36`."""
    first, second = (_value_text(change.what, each) for each in (change.first, change.second))
    return f"{change.what} {first} → {second}"


def _value_text(what: str, value: Value) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, tuple):
        return units.shape(value)
    if what == "layers":
        return f"×{value}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def only_differing(differences: pd.DataFrame) -> pd.DataFrame:
    """The rows of `differences_table` that are not the same in both models, for a screen.

    Each has the path in the first model, or in the second if the first lacks it, and the parameters
    of the module with all that it contains, of one layer.
    """
    rows = differences[differences["status"] != "same"]
    return pd.DataFrame(
        {
            "path": rows["path_first"].fillna(rows["path_second"]),
            "status": rows["status"],
            "change": rows["change"],
            "params_first": rows["params_total_first"],
            "params_second": rows["params_total_second"],
        }
    ).reset_index(drop=True)
