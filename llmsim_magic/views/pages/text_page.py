"""A report as text that fits a terminal, with or without colour."""

import importlib
import io
import random
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.printable import printable
from llmsim_magic.views.charts.chart import BarChart, Card, HeatMap, Scatter
from llmsim_magic.views.section import Page, Part, Picture, Section

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from llmsim_magic.views.screen.grid import Grid

DEFAULT_WIDTH = 80
MIN_WIDTH = 40
_LEAST_NAMES = 24  # characters of names of columns, also where the line then wraps
_FILES = "--csv DIR or --json FILE"


@defer_interrupt
def as_text(
    page: Page,
    max_rows: int | None = None,
    *,
    width: int = DEFAULT_WIDTH,
    color: bool = False,
) -> str:
    """A page as text: headlines, folded layers, people's units, the columns that fit.

    Args:
        page: what is shown. Charts have no text; a table that is folded away is left out where
            its view has another one.
        max_rows: most lines of a table; None for all.
        width: columns of the terminal, of which at least 40 are used.
        color: whether to add escape sequences of colour.
    """
    console = _console(max(width, MIN_WIDTH), color=color)
    for warning in page.warnings:
        _print_line(console, warning, "bold red")
    for place, part in enumerate(page.parts):
        if place or page.warnings:
            console.print()
        _print_part(console, part, max_rows)
    if page.notes:
        console.print()
        _print_line(console, "Notes", "bold")
        _print_notes(console, page.notes)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def _import_rich() -> None:
    """Import rich, whose import draws a number from `random`, and leave its state unchanged."""
    if "rich.console" not in sys.modules:
        state = random.getstate()
        importlib.import_module("rich.console")
        random.setstate(state)


def _console(width: int, *, color: bool) -> "Console":
    _import_rich()
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        force_jupyter=False,
        no_color=not color,
        color_system="standard" if color else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )


def _print_part(console: "Console", part: Part, max_rows: int | None) -> None:
    _print_line(console, part.title, "bold")
    if part.figures:
        _print_line(console, " · ".join(map(str, part.figures)))
    has_answer = any(_has_text(each) and not each.is_detail for each in part.sections)
    shown = [each for each in part.sections if not (each.is_detail and has_answer)]
    for section in filter(_has_text, shown):
        console.print()
        _print_section(console, section, max_rows)
    hidden = [each for each in part.sections if each.is_detail and has_answer]
    left = [each.title for each in filter(_has_text, hidden)]
    pictures = [each.title for each in part.sections if isinstance(each.body, Picture)]
    if left or pictures:
        console.print()
        names = "; ".join([*left, *(f"{title or part.label} (a picture)" for title in pictures)])
        _print_line(console, f"More in {_FILES}: {names}", "dim")


def _has_text(section: Section) -> bool:
    """Whether a section says anything in a terminal, where charts are not drawn."""
    return not isinstance(section.body, (Picture, BarChart, HeatMap, Scatter, tuple))


def _print_section(console: "Console", section: Section, max_rows: int | None) -> None:
    if section.title:
        _print_line(console, section.title, "bold")
    if section.remark:
        _print_line(console, section.remark, "dim")
    body = section.shown()
    if isinstance(body, Card):
        _print_card(console, body)
        return
    import pandas as pd

    if isinstance(body, pd.DataFrame):
        _print_table(console, body, max_rows)
    else:
        for line in str(body).split("\n"):
            _print_line(console, line)


def _print_card(console: "Console", card: Card) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for title, facts in card.groups:
        if facts:
            rows.add_row(Text(title, style="bold"), "")
        for fact in facts:
            said = f"{fact.value} ({fact.meaning})" if fact.meaning else fact.value
            rows.add_row(Text(f"  {fact.label}", style="dim"), Text(printable(said)))
    console.print(rows)


def _print_table(console: "Console", table: "pd.DataFrame", max_rows: int | None) -> None:
    from llmsim_magic.views.pages.text_table import as_table, fit
    from llmsim_magic.views.screen.grid import grids

    for name, grid in grids(table):
        if name:
            _print_line(console, name, "italic")
        if grid.once:
            _print_line(console, " · ".join(grid.once), "dim")
        shown = _first_lines(grid, max_rows)
        fitted = fit(shown, console.width)
        console.print(as_table(shown, fitted))
        for sentence in _footnotes(
            grid, fitted.left_out, len(grid.lines) - len(shown.lines), console.width
        ):
            _print_line(console, sentence, "dim")


def _first_lines(grid: "Grid", most: int | None) -> "Grid":
    if most is None or len(grid.lines) <= most:
        return grid
    from dataclasses import replace

    columns = [
        replace(
            each,
            texts=each.texts[:most],
            shorter=None if each.shorter is None else each.shorter[:most],
        )
        for each in grid.columns
    ]
    paths = None if grid.with_operators is None else grid.with_operators[:most]
    return replace(grid, lines=grid.lines[:most], columns=columns, with_operators=paths)


def _footnotes(grid: "Grid", left_out: list[str], rows: int, width: int) -> Iterator[str]:
    """What a line stands for, and what is not shown, in one line."""
    if grid.legend:
        yield f"{'; '.join(grid.legend)}."
    more_rows = f"{rows:,} more rows" if rows > 0 else ""
    missing = [*left_out, *(name.replace("_", " ") for name in grid.details)]
    if not missing and not more_rows:
        return
    from llmsim_magic.views.pages.text_table import names_of

    start, end = "Not shown: ", f"; all in {_FILES}"
    room = width - len(start) - len(end) - (len(more_rows) + 2 if more_rows else 0)
    names = names_of(missing, max(room, _LEAST_NAMES)) if missing else ""
    yield f"{start}{'; '.join(filter(None, (names, more_rows)))}{end}"


def _print_line(console: "Console", text: str, style: str | None = None) -> None:
    from rich.text import Text

    console.print(Text(printable(text), style=style or "", overflow="fold"))


def _print_notes(console: "Console", notes: Iterable[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 1, 0, 0))
    rows.add_column(width=1)
    rows.add_column(overflow="fold")
    for note in notes:
        rows.add_row("•", Text(printable(note)))
    if rows.row_count:
        console.print(rows)
