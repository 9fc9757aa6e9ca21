"""Lays out a report as HTML for a notebook or a browser: headline, picture, folded table."""

import html
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import pandas as pd

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views.charts.chart import BarChart, Card, HeatMap, Scatter
from llmsim_magic.views.pages.column_widths import width_rules
from llmsim_magic.views.pages.html_charts import chart_html
from llmsim_magic.views.pages.html_table import table_html
from llmsim_magic.views.pages.text_page import as_text
from llmsim_magic.views.screen.grid import shared_grids
from llmsim_magic.views.section import Figure, Page, Part, Section

if TYPE_CHECKING:
    from llmsim_magic.views.explain import Explanation
    from llmsim_magic.views.section import Drawn

MAX_ROWS = 1500
_DARK = (
    "if (matchMedia('(prefers-color-scheme: dark)').matches) "
    "document.documentElement.dataset.theme = 'dark';"
)
_PAGE_COLORS = """
body {font-family: system-ui, sans-serif; margin: 16px}
[data-theme="dark"] body {
  background: #16181c; color: #e6e8eb; --jp-ui-font-color1: #e6e8eb; --jp-ui-font-color2: #a4abb3;
  --jp-layout-color0: #16181c; --jp-layout-color2: #262a30;
}
"""


@defer_interrupt
def as_html(page: Page, max_rows: int = MAX_ROWS, *, has_script: bool = True) -> str:
    """HTML to embed in a page.

    Args:
        page: what is shown.
        max_rows: most rows of a table.
        has_script: whether to add the script that opens folded layers.
    """
    parts = ['<div class="llmsim">']
    parts += [f'<p class="warning" role="alert">{html.escape(each)}</p>' for each in page.warnings]
    if len(page.parts) > 1:
        parts.append(_contents(page.parts))
    parts += [_part(part, max_rows) for part in page.parts]
    if page.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in page.notes)
        parts.append(f'<ul class="notes">{notes}</ul>')
    parts.append("</div>")
    parts.insert(0, f"<style>{_style()}{width_rules(''.join(parts))}</style>")
    if has_script:
        parts.append(f"<script>(() => {{{script()}answerClicks(document);}})();</script>")
    return "\n".join(parts)


def as_bundle(page: Page) -> dict[str, str]:
    """The representations that a notebook displays: HTML and text."""
    with shared_grids():
        return {"text/html": as_html(page), "text/plain": as_text(page, max_rows=60)}


def as_page(page: Page) -> str:
    """A complete, self-contained HTML page, in the colours that the reader's system prefers."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(page.title)}</title>"
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_PAGE_COLORS}</style><script>{_DARK}</script></head>\n"
        f"<body>\n{as_html(page)}\n</body></html>\n"
    )


@cache
def script() -> str:
    """The script of a page: `answerClicks(root)` for the pages below an element."""
    return resources.files(__package__).joinpath("page.js").read_text("utf-8")


@cache
def _style() -> str:
    return resources.files(__package__).joinpath("page.css").read_text("utf-8")


def _contents(parts: Iterable[Part]) -> str:
    links = "".join(
        f'<a href="#llmsim-{html.escape(part.name)}">{html.escape(part.label)}</a>'
        for part in parts
    )
    return f'<nav aria-label="Contents">{links}</nav>'


def _part(part: Part, max_rows: int) -> str:
    sections = "\n".join(_section(section, max_rows) for section in part.sections)
    title = f"<h3>{html.escape(part.title)}</h3>" if part.title else ""
    name = html.escape(part.name)
    return f'<section id="llmsim-{name}">{title}{_headline(part.figures)}{sections}</section>'


def _headline(figures: Iterable[Figure]) -> str:
    texts = "".join(map(_figure, figures))
    return f'<p class="headline">{texts}</p>' if texts else ""


def _figure(figure: Figure) -> str:
    title = f' title="{html.escape(figure.exact, quote=True)}"' if figure.exact else ""
    kind = ' class="bad"' if figure.is_bad else ""
    return (
        f"<span{kind}{title}><b>{html.escape(figure.value)}</b> {html.escape(figure.label)}</span>"
    )


def _section(section: Section, max_rows: int) -> str:
    title = html.escape(section.title)
    remark = f'<p class="dim">{html.escape(section.remark)}</p>' if section.remark else ""
    body = f"{remark}{_body(section, max_rows)}"
    if section.is_detail:
        return f"<details><summary>{title}</summary>{body}</details>"
    return f"{f'<h4>{title}</h4>' if title else ''}{body}"


def _body(section: Section, max_rows: int) -> str:
    body = section.shown()
    if isinstance(body, pd.DataFrame):
        return table_html(body, max_rows, section.bars)
    if isinstance(body, tuple):
        return f'<div class="beside">{"".join(map(_shown, body))}</div>'
    return _shown(body)


def _shown(body: "Drawn | Explanation | Card") -> str:
    if isinstance(body, (BarChart, HeatMap, Scatter, Card)):
        return chart_html(body)
    return body._repr_html_()
