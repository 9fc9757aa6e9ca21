"""A table as CSV that a spreadsheet opens as data."""

from typing import TYPE_CHECKING, Any

from llmsim_magic.records.deferred_interrupt import defer_interrupt

if TYPE_CHECKING:
    import pandas as pd

# What a cell begins with that a spreadsheet takes for a formula, after OWASP's "CSV Injection".
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


@defer_interrupt
def to_csv(table: "pd.DataFrame") -> bytes:
    """The table with its named index as columns.

    A text, or a column's name, that a spreadsheet would take for a formula begins with a single
    quote; numbers stay what they are.
    """
    named = table.reset_index() if table.index.name is not None else table
    text = named.rename(columns=_inert).map(_inert).to_csv(index=False)
    return text.encode()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
