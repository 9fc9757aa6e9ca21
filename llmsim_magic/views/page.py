"""One request's answer as a page: HTML for a notebook, text for a terminal."""

import html
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views import units
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.plots.plot import Plot
from llmsim_magic.views.section import Section

MOST_ROWS = 1500
SCREENFUL = 50
_SIZE = re.compile(r"(\d+)")
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
def as_html(sections: Iterable[Section], remarks: Iterable[str], most_rows: int = MOST_ROWS) -> str:
    """A part of a page; of a long table the first `most_rows` rows."""
    parts = [_STYLE, '<div class="llmsim">']
    for section in sections:
        parts.append(f"<h4>{html.escape(section.title)}</h4>")
        if section.remark:
            parts.append(f"<p>{html.escape(section.remark)}</p>")
        if isinstance(section.body, pd.DataFrame):
            parts.append(_table(section.body, most_rows))
        else:
            parts.append(section.body._repr_html_())
    parts += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    return "\n".join([*parts, "</div>"])


def as_bundle(sections: Sequence[Section], remarks: Iterable[str]) -> dict[str, str]:
    """What a notebook displays, as HTML and as text."""
    said = tuple(remarks)
    return {
        "text/html": as_html(sections, said),
        "text/plain": as_text(sections, said, most_rows=60),
    }


def as_page(title: str, sections: Iterable[Section], remarks: Iterable[str]) -> str:
    """A whole page, which needs nothing beside it."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        '</title><meta name="viewport" content="width=device-width"></head>\n'
        f'<body style="font-family:sans-serif">\n{as_html(sections, remarks)}\n</body></html>\n'
    )


@defer_interrupt
def as_text(
    sections: Iterable[Section], remarks: Iterable[str], most_rows: int | None = None
) -> str:
    """Plain text; a table of more than `most_rows` rows shows its head and its tail."""
    parts = []
    for section in sections:
        lines = [section.title, "=" * len(section.title)]
        if section.remark:
            lines.append(section.remark)
        if isinstance(section.body, pd.DataFrame):
            cut = most_rows is not None and len(section.body) > most_rows
            lines.append(readable(section.body).to_string(max_rows=most_rows, show_dimensions=cut))
        elif isinstance(section.body, (Graph, Plot)):
            lines.append(f"{section.body.title}: a picture; --csv DIR writes it as SVG")
        else:
            lines.append(str(section.body))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *remarks])


def _table(table: pd.DataFrame, most_rows: int) -> str:
    """A scrolling table; beyond `most_rows` it says that the rest stands in the DataFrame."""
    named = table.reset_index() if table.index.name else table
    head, texts = [], []
    shown = readable(named.iloc[:most_rows])
    columns: dict[Hashable, list[str]] = {
        name: [html.escape(cell) for cell in shown[str(name)]] for name in named
    }
    if "changes" in columns:
        _mark_changes(columns)
    for name, cells in columns.items():
        kind = ' class="n"' if _is_number(named[name]) or name == "value" else ""
        head.append(f'<th scope="col"{kind}>{html.escape(str(name))}</th>')
        texts.append([f"<td{kind}>{cell}</td>" for cell in cells])
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in zip(*texts, strict=True))
    box = "box long" if len(table) > SCREENFUL else "box"
    rest = len(table) - most_rows
    more = f"<p>{rest:,} more rows are in the DataFrame and the CSV.</p>" if rest > 0 else ""
    return (
        f'<div class="{box}" tabindex="0"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _is_number(cells: "pd.Series[Any]") -> bool:
    return is_numeric_dtype(cells) and not is_bool_dtype(cells)


def _mark_changes(columns: dict[Hashable, list[str]]) -> None:
    """Set in bold the sizes that differ from one workload's column to another's."""
    names = list(columns)
    workloads = names[names.index("call") + 1 : names.index("symbolic")]
    for place, row in enumerate(zip(*(columns[name] for name in workloads), strict=True)):
        parts = [_SIZE.split(cell) for cell in row]
        alike = len({len(split) for split in parts}) == 1
        for name, split in zip(workloads, parts, strict=True):
            columns[name][place] = "".join(
                f"<b>{part}</b>"
                if part.isdigit() and not (alike and len({p[i] for p in parts}) == 1)
                else part
                for i, part in enumerate(split)
            )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Cells as people read them: grouped digits, `[1, 128]`, nothing where there is nothing."""
    return pd.DataFrame(
        {
            str(name): [_cell(value, is_share=str(name).endswith("share")) for value in table[name]]
            for name in table
        },
        index=table.index,
    )


def _cell(value: object, *, is_share: bool) -> str:
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
