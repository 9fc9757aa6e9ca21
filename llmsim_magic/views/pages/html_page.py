"""Lays out a report as HTML for a notebook, with its text beside it."""

import html
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views import units
from llmsim_magic.views.pages.text_page import as_text
from llmsim_magic.views.section import Section

MAX_ROWS = 1500
SCROLLED_ROWS = 50  # a longer table gets a scroll bar
_INTEGER = re.compile(r"(\d+)")
_STYLE = """<style>
.llmsim {font-size:13px} .llmsim h4 {margin:.9em 0 .3em} .llmsim p {margin:.3em 0}
.llmsim .box {overflow:auto; border:1px solid #8886} .llmsim .long {max-height:480px}
.llmsim.llmsim table {border-collapse:collapse; margin:0}
.llmsim.llmsim table :is(th,td) {
  text-align:left; padding:2px 8px; vertical-align:top; white-space:nowrap; max-width:none}
.llmsim.llmsim table :is(th,td).n {text-align:right; font-variant-numeric:tabular-nums}
.llmsim thead th {position:sticky; top:0; background:var(--jp-layout-color2,#eee)}
</style>"""


@defer_interrupt
def as_html(sections: Iterable[Section], remarks: Iterable[str], max_rows: int = MAX_ROWS) -> str:
    """HTML to embed in a page; of a table, at most the first `max_rows` rows."""
    parts = [_STYLE, '<div class="llmsim">']
    for section in sections:
        parts.append(f"<h4>{html.escape(section.title)}</h4>")
        if section.remark:
            parts.append(f"<p>{html.escape(section.remark)}</p>")
        if isinstance(section.body, pd.DataFrame):
            parts.append(_html_table(section.body, max_rows))
        else:
            parts.append(section.body._repr_html_())
    parts += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    return "\n".join([*parts, "</div>"])


def as_bundle(sections: Sequence[Section], remarks: Iterable[str]) -> dict[str, str]:
    """The representations that a notebook displays: HTML and text."""
    all_remarks = tuple(remarks)
    return {
        "text/html": as_html(sections, all_remarks),
        "text/plain": as_text(sections, all_remarks, max_rows=60),
    }


def as_page(title: str, sections: Iterable[Section], remarks: Iterable[str]) -> str:
    """A complete, self-contained HTML page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        '</title><meta name="viewport" content="width=device-width"></head>\n'
        f'<body style="font-family:sans-serif">\n{as_html(sections, remarks)}\n</body></html>\n'
    )


def _html_table(table: pd.DataFrame, max_rows: int) -> str:
    """An HTML table of the first `max_rows` rows, and a note if there are more."""
    named = table.reset_index() if table.index.name else table
    head, columns_html = [], []
    shown = format_table(named.iloc[:max_rows])
    columns: dict[Hashable, list[str]] = {
        name: [html.escape(cell) for cell in shown[str(name)]] for name in named
    }
    if "changes" in columns:
        _mark_changes(columns)
    for name, cells in columns.items():
        kind = ' class="n"' if _is_number(named[name]) or name == "value" else ""
        head.append(f'<th scope="col"{kind}>{html.escape(str(name))}</th>')
        columns_html.append([f"<td{kind}>{cell}</td>" for cell in cells])
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in zip(*columns_html, strict=True))
    box = "box long" if len(table) > SCROLLED_ROWS else "box"
    rest = len(table) - max_rows
    more = f"<p>{rest:,} more rows are in the DataFrame and the CSV.</p>" if rest > 0 else ""
    return (
        f'<div class="{box}" tabindex="0"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _is_number(cells: "pd.Series[Any]") -> bool:
    return is_numeric_dtype(cells) and not is_bool_dtype(cells)


def _mark_changes(columns: dict[Hashable, list[str]]) -> None:
    """Make the sizes bold that differ between the columns of workloads."""
    names = list(columns)
    workloads = names[names.index("call") + 1 : names.index("symbolic")]
    for place, row in enumerate(zip(*(columns[name] for name in workloads), strict=True)):
        parts = [_INTEGER.split(cell) for cell in row]
        same_structure = len({len(split) for split in parts}) == 1
        for name, split in zip(workloads, parts, strict=True):
            columns[name][place] = "".join(
                f"<b>{part}</b>"
                if part.isdigit() and not (same_structure and len({p[i] for p in parts}) == 1)
                else part
                for i, part in enumerate(split)
            )


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its cells as text: grouped digits, `[1, 128]`, empty for NA."""
    texts = {}
    for name in table:
        is_share = str(name).endswith("share")
        texts[str(name)] = [_format_cell(value, is_share=is_share) for value in table[name]]
    return pd.DataFrame(texts, index=table.index)


def _format_cell(value: object, *, is_share: bool) -> str:
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
