"""A table as HTML: folded layers, exact values on hover, columns that its box has room for."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsim_magic.views.pages.column_widths import (
    FittedColumn,
    beside_paths,
    fit_columns,
    has_workloads,
)
from llmsim_magic.views.screen.grid import Grid, grids

if TYPE_CHECKING:
    import pandas as pd

SCROLLED_ROWS = 40  # a longer table gets a scroll bar
_VERDICTS = {"yes": "good", "no": "bad"}


def table_html(table: "pd.DataFrame", max_rows: int, bars: Sequence[str] = ()) -> str:
    """A table in a box, for each execution one if its rows repeat by execution.

    Args:
        table: the table.
        max_rows: most rows; a sentence says how many more there are.
        bars: columns whose cells have a bar as long as their value.
    """
    return "".join(_grid_html(name, each, max_rows, bars) for name, each in grids(table))


def _grid_html(name: str, grid: Grid, max_rows: int, bars: Sequence[str]) -> str:
    head = f"<h5>{html.escape(name)}</h5>" if name else ""
    said = " · ".join([*grid.once, *grid.legend])
    once = f'<p class="dim">{html.escape(said)}</p>' if said else ""
    columns = fit_columns(grid, bars)
    lines = range(min(len(grid.lines), max_rows))
    body = "\n".join(_row(grid, columns, place, bars) for place in lines)
    heads = "".join(_head(column, place) for place, column in enumerate(columns))
    below = f"{_choice(columns)}{_footnote(grid, len(grid.lines) - len(lines))}"
    is_long = len(lines) > SCROLLED_ROWS
    return (
        f"{head}{once}"
        f'<div class="box{" long" if is_long else ""}" tabindex="0">'
        f"<table{_classes('workloads' if has_workloads(grid) else '')}><thead><tr>{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
        f'<div class="below">{below}</div>'
    )


def _head(column: FittedColumn, place: int) -> str:
    kind = "" if column.shown.is_text else "n"
    return f'<th scope="col"{_classes(kind, column.classes, _frozen(place))}>' + (
        f"{html.escape(column.shown.column.head)}</th>"
    )


def _row(grid: Grid, columns: list[FittedColumn], place: int, bars: Sequence[str]) -> str:
    line = grid.lines[place]
    cells = "".join(
        _path_cell(grid, place)
        if rank == 0 and column.shown.column.kind == "path"
        else _cell(column, place, rank, bars)
        for rank, column in enumerate(columns)
    )
    is_hypothetical = any(
        column.shown.name == "fits" and column.texts[place] == "no" for column in columns
    )
    about = f' data-depth="{line.depth}"' if line.depth or line.is_block else ""
    if line.layers > 1:
        stack = html.escape(line.stack, quote=True)
        about += f' data-stack="{stack}" data-layers="{",".join(map(str, line.indices))}"'
    kinds = _classes("block" if line.is_block else "", "hypothetical" if is_hypothetical else "")
    return f"<tr{kinds}{about}>{cells}</tr>"


def _path_cell(grid: Grid, place: int) -> str:
    line, operators = grid.lines[place], beside_paths(grid)
    operator = "" if operators is None else operators.texts[place]
    label, _, times = line.label.strip().partition(" ×")
    is_same = operator and label.split(":")[-1] == operator
    beside = f' <i class="dim">{html.escape(operator)}</i>' if operator and not is_same else ""
    fold = f'<button class="fold" aria-expanded="false">×{times}</button> ' if times else ""
    indent = f' style="padding-left:{8 + 14 * line.depth}px"' if line.depth else ""
    return (
        f'<th scope="row" class="frozen path" title="{html.escape(label, quote=True)}"{indent}>'
        f"{fold}<span>{html.escape(label)}</span>{beside}</th>"
    )


def _cell(column: FittedColumn, place: int, rank: int, bars: Sequence[str]) -> str:
    shown, text = column.shown, column.texts[place]
    exact = shown.exact[place] if shown.exact else ""
    title = f' title="{html.escape(exact, quote=True)}"' if exact and exact != text else ""
    kind = "" if shown.is_text else "n"
    verdict = _VERDICTS.get(text, "") if shown.column.head in ("fits", "holds") else ""
    prose = shown.column.kind if shown.column.kind in ("prose", "shapes") else ""
    inside = html.escape(text).replace("\n", "<br>")
    if shown.name in bars and shown.sizes and shown.sizes[place]:
        inside = f"{inside}{_bar(shown.sizes, place)}"
    classes = _classes(kind, verdict, prose, column.classes, _frozen(rank))
    one = shown.of_layer.get(place)
    of_layer = "" if one is None else f' data-of-layer="{html.escape(one, quote=True)}"'
    return f"<td{classes}{title}{of_layer}>{inside}</td>"


def _bar(sizes: list[float], place: int) -> str:
    """A bar of a cell, as long as its value is beside the largest of the column."""
    largest = max(sizes)
    share = 100 * sizes[place] / largest if largest > 0 else 0
    return f'<span class="inbar"><i style="width:{max(share, 0.6):.1f}%"></i></span>'


def _classes(*names: str) -> str:
    found = " ".join(filter(None, names))
    return f' class="{found}"' if found else ""


def _frozen(place: int) -> str:
    return "frozen" if place == 0 else ""


def _choice(columns: list[FittedColumn]) -> str:
    """A box to tick that shows every column, with a scroll bar where they do not fit."""
    wide = [column for column in columns if column.classes.startswith("wide")]
    if not wide:
        return ""
    names = dict.fromkeys(column.shown.column.head for column in wide)
    listed = html.escape(", ".join(names), quote=True)
    return (
        f'<label class="choice" title="{listed}"><input type="checkbox" class="all"/> '
        "all columns</label>"
    )


def _footnote(grid: Grid, rest: int) -> str:
    parts = []
    if rest > 0:
        parts.append(f"{rest:,} more rows are in the DataFrame and the CSV")
    if grid.details:
        names = ", ".join(name.replace("_", " ") for name in grid.details)
        parts.append(f"in the DataFrame and the CSV only: {names}")
    return f'<span class="dim">{html.escape("; ".join(parts))}.</span>' if parts else ""
