"""A table as HTML: folded layers, exact values on hover, columns by the width that there is.

A column has a class such as `w640`: it is shown where the table's box is at least 640 pixels wide.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim_magic.views.screen.grid import Grid, ShownColumn, grids
from llmsim_magic.views.screen.screen_table import FORMULA

if TYPE_CHECKING:
    import pandas as pd

SCROLLED_ROWS = 40  # a longer table gets a scroll bar
_FONT_PX = 12
_SHAPES_PX = 10.5  # font of a column of shapes
_CELL_PX = 10  # padding of a cell
_NARROW_PATH_PX = 145  # beside the shapes of many workloads
# Widths of characters in a wide font, as parts of its size.
_NARROW, _NORMAL, _WIDE = 0.35, 0.64, 0.86
_BOLD = 1.1  # how much wider bold text is
_NARROW_ONES = frozenset(" ,.:;|()[]il'fjrt·")
_WIDE_ONES = frozenset("mwMWGOQ%→")
_FRAME_PX = 12  # border and scroll bar of a box
_WIDTH_CLASS = re.compile(r"\b(?:wide w|brief m)(\d+)\b")
# A sentence wraps, and a longer path is cropped at its beginning.
_MOST_PX = {"prose": 240, "text": 240, "path": 230}
_BAR_PX = 74
_IMPORTANCE_OF_BARS = 2
_CERTAIN = 2  # columns that are shown however narrow the box is
_VERDICTS = {"yes": "good", "no": "bad"}


@dataclass(frozen=True, slots=True)
class _HtmlColumn:
    """A column with its width and its classes: the widths of a box in which it is shown."""

    shown: ShownColumn
    texts: list[str]
    width: float
    classes: str = ""


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
    columns = _fitted(grid, bars)
    lines = range(min(len(grid.lines), max_rows))
    body = "\n".join(_row(grid, columns, place, bars) for place in lines)
    heads = "".join(_head(column, place) for place, column in enumerate(columns))
    below = f"{_choice(columns)}{_footnote(grid, len(grid.lines) - len(lines))}"
    is_long = len(lines) > SCROLLED_ROWS
    return (
        f"{head}{once}"
        f'<div class="box{" long" if is_long else ""}" tabindex="0">'
        f"<table{_classes('workloads' if _has_workloads(grid) else '')}><thead><tr>{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
        f'<div class="below">{below}</div>'
    )


def _fitted(grid: Grid, bars: Sequence[str]) -> list[_HtmlColumn]:
    """The columns with the widths from which each is shown, the most important ones first.

    A column with shorter texts shows these, and its full ones where everything fits.
    """
    beside = _beside_path(grid)
    shown = [each for each in grid.columns if each is not beside]
    columns = [_column(grid, each, bars, shorter=True) for each in shown]

    def importance(place: int) -> int:
        column = columns[place].shown
        most = _IMPORTANCE_OF_BARS if column.name in bars else column.importance
        return min(column.importance, most)

    by_importance = sorted(range(len(columns)), key=importance)
    total, found = float(_FRAME_PX), dict(enumerate(columns))
    for rank, place in enumerate(by_importance):
        total += columns[place].width
        if rank >= _CERTAIN:
            found[place] = _from(columns[place], total)
    fitted: list[_HtmlColumn] = []
    for place, column in found.items():
        full = _column(grid, column.shown, bars, shorter=False)
        if full.texts == column.texts:
            fitted.append(column)
            continue
        total += max(full.width - columns[place].width, 0)
        until = f"{column.classes} brief m{_rounded(total)}".strip()
        fitted += [_HtmlColumn(column.shown, column.texts, column.width, until), _from(full, total)]
    return fitted


def _from(column: _HtmlColumn, width: float) -> _HtmlColumn:
    return _HtmlColumn(column.shown, column.texts, column.width, f"wide w{_rounded(width)}")


def _rounded(width: float) -> int:
    return math.ceil(width)


def width_rules(page: str) -> str:
    """The style rules for the columns of a page that depend on the width of their box."""
    return "".join(
        f"@container (max-width:{width}px){{.llmsim table .w{width}{{display:none}}}}"
        f"@container (min-width:{width}.1px){{.llmsim table .m{width}{{display:none}}}}"
        for width in sorted({int(found) for found in _WIDTH_CLASS.findall(page)})
    )


def _beside_path(grid: Grid) -> ShownColumn | None:
    """The column of operators or types, which stands beside the paths that it is of."""
    if not grid.columns or grid.columns[0].column.kind != "path":
        return None
    return next((each for each in grid.columns if each.name in ("op", "type")), None)


def _column(grid: Grid, shown: ShownColumn, bars: Sequence[str], *, shorter: bool) -> _HtmlColumn:
    texts = shown.shorter if shorter and shown.shorter is not None else shown.texts
    kind, beside = shown.column.kind, _beside_path(grid)
    if shown is grid.columns[0] and beside is not None:
        pairs = zip(grid.lines, beside.texts, strict=True)
        width = max((_pixels(f"{line.label} {text}") for line, text in pairs), default=0.0)
    else:
        size = _SHAPES_PX if kind == "shapes" else _FONT_PX
        width = max(
            (
                _pixels(part, size) * (_BOLD if line.is_block else 1)
                for line, text in zip(grid.lines, texts, strict=True)
                for part in text.split("\n")
            ),
            default=0.0,
        )
    if kind in _MOST_PX:
        width = min(width, _MOST_PX[kind])
    if kind == "path" and _has_workloads(grid):
        width = min(width, _NARROW_PATH_PX)
    width = max(width, *(_BOLD * _pixels(word) for word in shown.column.head.split()), 0.0)
    return _HtmlColumn(shown, texts, width + _CELL_PX + (_BAR_PX if shown.name in bars else 0))


def _has_workloads(grid: Grid) -> bool:
    return any(column.name == FORMULA for column in grid.columns)


def _pixels(text: str, size: float = _FONT_PX) -> float:
    """About the width of a text in a wide font."""
    narrow = sum(each in _NARROW_ONES for each in text)
    wide = sum(each in _WIDE_ONES for each in text)
    normal = len(text) - narrow - wide
    return size * (narrow * _NARROW + wide * _WIDE + normal * _NORMAL)


def _head(column: _HtmlColumn, place: int) -> str:
    kind = "" if column.shown.is_text else "n"
    return f'<th scope="col"{_classes(kind, column.classes, _frozen(place))}>' + (
        f"{html.escape(column.shown.column.head)}</th>"
    )


def _row(grid: Grid, columns: list[_HtmlColumn], place: int, bars: Sequence[str]) -> str:
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
    line, operators = grid.lines[place], _beside_path(grid)
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


def _cell(column: _HtmlColumn, place: int, rank: int, bars: Sequence[str]) -> str:
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
    return f"<td{classes}{title}>{inside}</td>"


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


def _choice(columns: list[_HtmlColumn]) -> str:
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
