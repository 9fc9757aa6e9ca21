"""The cells of a table with all their digits, as text."""

import pandas as pd

from llmsim_magic.views import units


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its cells as text: grouped digits, `[1, 128]`, empty for NA."""
    texts = {}
    for name in table:
        is_share = str(name).endswith("share")
        texts[str(name)] = [_format_cell(value, is_share=is_share) for value in table[name]]
    return pd.DataFrame(texts, index=table.index)


def _format_cell(value: object, *, is_share: bool) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        nested = value and isinstance(value[0], tuple)
        return " ".join(map(units.shape, value)) if nested else ", ".join(map(str, value))
    if isinstance(value, tuple):
        return units.shape(value)
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or hasattr(value, "bit_count"):
        return units.count(int(value))  # type: ignore[call-overload]
    if isinstance(value, float):
        return f"{value:.1%}" if is_share else f"{value:,.4g}"
    return str(value)
