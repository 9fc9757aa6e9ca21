"""Exports tables as CSV that a spreadsheet opens as it is meant, and safely."""

from typing import TYPE_CHECKING, Any

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views import units

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes a cell that begins with one of these for a formula (OWASP, "CSV Injection").
_FORMULA_PREFIXES = tuple("=+-@\t\r\n＝＋－＠")


@defer_interrupt
def to_csv(table: "pd.DataFrame") -> bytes:
    """The table as CSV, with a named index as its first column.

    UTF-8 with a byte order mark, without which Excel takes it for the system's code page. Shapes
    are written as `[1, 128], [1024]`. Texts and column names that a spreadsheet would take for a
    formula get a leading single quote; numbers are unchanged.
    """
    named = table.reset_index() if table.index.name is not None else table
    text = named.rename(columns=_escape_formula).map(_cell).to_csv(index=False)
    return text.encode("utf-8-sig")


def _cell(value: Any) -> Any:
    """A value as a cell: a shape, a list of shapes or of numbers as text; others unchanged."""
    if isinstance(value, tuple):
        return units.shape(value)
    if isinstance(value, list):
        return ", ".join(str(_cell(each)) for each in value)
    return _escape_formula(value)


def _escape_formula(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_PREFIXES)
    return f"'{value}" if is_formula else value
