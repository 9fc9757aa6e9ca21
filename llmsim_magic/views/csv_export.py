"""Exports tables as CSV that is safe to open in a spreadsheet."""

from typing import TYPE_CHECKING, Any

from llmsim_magic.records.deferred_interrupt import defer_interrupt

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes a cell that begins with one of these for a formula (OWASP, "CSV Injection").
_FORMULA_PREFIXES = tuple("=+-@\t\r\n＝＋－＠")


@defer_interrupt
def to_csv(table: "pd.DataFrame") -> bytes:
    """The table as UTF-8 CSV, with a named index as its first column.

    Texts and column names that a spreadsheet would take for a formula get a leading single
    quote; numbers are unchanged.
    """
    named = table.reset_index() if table.index.name is not None else table
    text = named.rename(columns=_escape_formula).map(_escape_formula).to_csv(index=False)
    return text.encode()


def _escape_formula(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA_PREFIXES)
    return f"'{value}" if is_formula else value
