"""A table of conditions, such as memory of at most 24 GB, and whether each holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import texts

_FORMATS = {
    "bytes": units.nbytes,
    "parameters": units.parameters,
    "s": units.seconds,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A figure and what it may be at most.

    Attributes:
        quantity: what is limited: parameters, memory, fits or time.
        where: the workload, device and runtime of the figure.
        value: the figure.
        limit: the most that it may be.
        unit: the unit of both: bytes, parameters or s.
        detail: what else a reader needs, such as what would make the model fit.
    """

    quantity: str
    where: str
    value: float
    limit: float
    unit: str
    detail: str | None = None

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@defer_interrupt
def conditions_table(conditions: Sequence[Condition]) -> pd.DataFrame:
    """One row per condition, index `quantity`: whether it holds, its figure and its limit."""
    columns: dict[str, object] = {
        "holds": [each.holds for each in conditions],
        "value": pd.Series([each.value for each in conditions], dtype=object).array,
        "limit": pd.Series([each.limit for each in conditions], dtype=object).array,
        "unit": [each.unit for each in conditions],
        "where": [each.where for each in conditions],
        "detail": texts(each.detail for each in conditions),
    }
    index = pd.Index([each.quantity for each in conditions], name="quantity", dtype=object)
    return pd.DataFrame(columns, index=index)


def condition_lines(conditions: Sequence[Condition]) -> Iterator[str]:
    """`holds          parameters: 596 M of at most 8.00 B` for each condition."""
    for each in conditions:
        say = _FORMATS[each.unit]
        verdict = "holds" if each.holds else "does not hold"
        where = f" ({each.where})" if each.where else ""
        detail = f"; {each.detail}" if each.detail else ""
        figures = f"{say(each.value)} of at most {say(each.limit)}"
        if say(each.value) == say(each.limit) and each.value != each.limit:  # as rounded
            figures = f"{each.value:,} of at most {each.limit:,} {each.unit}"
        yield f"{verdict:<13}  {each.quantity}: {figures}{where}{detail}"
