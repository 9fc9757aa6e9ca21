"""One request's answer as a page: HTML for a notebook, text for a terminal."""

import html
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from llmsim_magic.views import units
from llmsim_magic.views.drawing import Graph
from llmsim_magic.views.prose import Prose

MOST_ROWS = 1500
_NUMBERS = frozenset(
    """
    order layer depth children calls params params_total trainable flops elementwise_ops
    bytes_read bytes_written causal_skippable_flops in_features out_features num_embeddings
    embedding_dim order_first rank source target batch context operators cache_bytes
    """.split()  # noqa: SIM905 - a vocabulary reads best as words
)
_STYLE = """<style>
.llmsim {font-size:13px} .llmsim h4 {margin:.9em 0 .3em}
.llmsim .box {overflow:auto; max-height:480px; border:1px solid #8886}
.llmsim table {border-collapse:collapse; margin:0; white-space:nowrap}
.llmsim th, .llmsim td {text-align:left; padding:2px 8px; vertical-align:top}
.llmsim td.n {text-align:right; font-variant-numeric:tabular-nums}
.llmsim thead th {position:sticky; top:0; background:var(--jp-layout-color2,#eee)}
.llmsim tr.changes td {font-weight:600}
.llmsim p {margin:.3em 0}
</style>"""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a title, what it shows, and a remark below the title."""

    title: str
    body: pd.DataFrame | Graph | Prose
    remark: str = ""


def as_html(sections: Iterable[Section], remarks: Iterable[str]) -> str:
    parts = [_STYLE, '<div class="llmsim">']
    for section in sections:
        parts.append(f"<h4>{html.escape(section.title)}</h4>")
        if section.remark:
            parts.append(f"<p>{html.escape(section.remark)}</p>")
        if isinstance(section.body, pd.DataFrame):
            parts.append(_table(section.body))
        else:
            parts.append(section.body._repr_html_())
    parts += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    return "\n".join([*parts, "</div>"])


def as_text(sections: Iterable[Section], remarks: Iterable[str]) -> str:
    parts = []
    for section in sections:
        lines = [section.title, "=" * len(section.title)]
        if section.remark:
            lines.append(section.remark)
        if isinstance(section.body, pd.DataFrame):
            lines.append(_readable(section.body).to_string())
        elif isinstance(section.body, Graph):
            lines.append(f"{section.body.title}: a picture; --csv DIR writes it as SVG")
        else:
            lines.append(str(section.body))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *remarks])


def _table(table: pd.DataFrame) -> str:
    """A scrolling table; beyond `MOST_ROWS` it says that the rest stands in the DataFrame."""
    marks = table["changes"].tolist() if "changes" in table else [False] * len(table)
    shown = _readable(table.iloc[:MOST_ROWS])
    names = [shown.index.name or "", *shown.columns]
    numbers = [str(name) in _NUMBERS for name in names]
    rows = []
    for mark, row in zip(marks, shown.itertuples(), strict=False):
        cells = "".join(
            f'<td class="n">{html.escape(str(value))}</td>'
            if number
            else f"<td>{html.escape(str(value))}</td>"
            for value, number in zip(row, numbers, strict=True)
        )
        rows.append(f'<tr class="changes">{cells}</tr>' if mark else f"<tr>{cells}</tr>")
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in names)
    rest = len(table) - len(shown)
    more = f"<p>{rest:,} more rows are in the DataFrame and the CSV.</p>" if rest > 0 else ""
    body = "\n".join(rows)
    return (
        f'<div class="box" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Cells as people read them: grouped digits, `[1, 128]`, nothing where there is nothing."""
    return pd.DataFrame(
        {str(name): [_cell(value) for value in table[name]] for name in table}, index=table.index
    )


def _cell(value: object) -> str:
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
    return str(value)
