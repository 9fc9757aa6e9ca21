"""Which columns of a table a box has room for, as classes and style rules of a page.

A column has a class such as `w640`: it is hidden where its box is not wider than 640 pixels. One
with shorter texts is there twice: briefly in a narrow box, with its full texts in a wide one.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llmsim_magic.views.screen.grid import Grid, ShownColumn
from llmsim_magic.views.screen.screen_table import FORMULA

_FONT_PX = 12
_SHAPES_PX = 10.5  # font of a column of shapes
_CELL_PX = 10  # padding of a cell
_FRAME_PX = 12  # border and scroll bar of a box
_BAR_PX = 74
# A sentence wraps, and a longer path is cropped.
_MOST_PX = {"prose": 240, "text": 240, "path": 230}
_NARROW_PATH_PX = 145  # beside the shapes of many workloads
# Widths of characters in a wide font, as parts of its size.
_NARROW, _NORMAL, _WIDE = 0.35, 0.64, 0.86
_NARROW_ONES = frozenset(" ,.:;|()[]il'fjrt·")
_WIDE_ONES = frozenset("mwMWGOQ%→")
_BOLD = 1.1  # how much wider bold text is
_CERTAIN = 2  # columns that are shown however narrow the box is
_IMPORTANCE_OF_BARS = 2
_WIDTH_CLASS = re.compile(r"\b(?:wide w|brief m)(\d+)\b")


@dataclass(frozen=True, slots=True)
class FittedColumn:
    """A column with its texts, its width in pixels, and the classes that hide it."""

    shown: ShownColumn
    texts: list[str]
    width: float
    classes: str = ""


def fit_columns(grid: Grid, bars: Sequence[str] = ()) -> list[FittedColumn]:
    """The columns, each shown where its box has room for it and all that are more important.

    Args:
        grid: the table. Its operators have no column of their own where it has paths: they stand
            beside these.
        bars: names of the columns whose cells have a bar.
    """
    beside = beside_paths(grid)
    shown = [each for each in grid.columns if each is not beside]
    columns = [_brief(grid, each, bars) for each in shown]
    total = float(_FRAME_PX)
    for rank, place in enumerate(_by_importance(shown, bars)):
        total += columns[place].width
        if rank >= _CERTAIN:
            columns[place] = replace(columns[place], classes=f"wide w{math.ceil(total)}")
    fitted: list[FittedColumn] = []
    for column in columns:
        fitted.append(column)
        if column.texts != column.shown.texts:
            full = _measured(grid, column.shown, column.shown.texts, bars)
            total += max(full.width - column.width, 0)
            until, start = f"brief m{math.ceil(total)}", f"wide w{math.ceil(total)}"
            fitted[-1] = replace(column, classes=f"{column.classes} {until}".strip())
            fitted.append(replace(full, classes=start))
    return fitted


def _by_importance(shown: Sequence[ShownColumn], bars: Sequence[str]) -> list[int]:
    """The places of columns, the most important first; bars are a picture, and come early."""

    def importance(place: int) -> int:
        own = shown[place].importance
        return min(own, _IMPORTANCE_OF_BARS) if shown[place].name in bars else own

    return sorted(range(len(shown)), key=importance)


def width_rules(page: str) -> str:
    """The style rules for the columns of a page that depend on the width of their box."""
    return "".join(
        f"@container (max-width:{width}px){{.llmsim table .w{width}{{display:none}}}}"
        f"@container (min-width:{width}.1px){{.llmsim table .m{width}{{display:none}}}}"
        for width in sorted({int(found) for found in _WIDTH_CLASS.findall(page)})
    )


def beside_paths(grid: Grid) -> ShownColumn | None:
    """The column of operators or types, which stands beside the paths that it is of."""
    if not grid.columns or grid.columns[0].column.kind != "path":
        return None
    return next((each for each in grid.columns if each.name in ("op", "type")), None)


def has_workloads(grid: Grid) -> bool:
    """Whether a table has the shapes of workloads, which leave little room for paths."""
    return any(column.name == FORMULA for column in grid.columns)


def _brief(grid: Grid, shown: ShownColumn, bars: Sequence[str]) -> FittedColumn:
    texts = shown.texts if shown.shorter is None else shown.shorter
    return _measured(grid, shown, texts, bars)


def _measured(
    grid: Grid, shown: ShownColumn, texts: list[str], bars: Sequence[str]
) -> FittedColumn:
    kind, beside = shown.column.kind, beside_paths(grid)
    if shown is grid.columns[0] and beside is not None:
        pairs = zip(grid.lines, beside.texts, strict=True)
        width = max((_pixels(f"{line.label} {text}") for line, text in pairs), default=0.0)
    else:
        width = _widest(grid, texts, _SHAPES_PX if kind == "shapes" else _FONT_PX)
    width = min(width, _MOST_PX.get(kind, width))
    if kind == "path" and has_workloads(grid):
        width = min(width, _NARROW_PATH_PX)
    width = max(width, *(_BOLD * _pixels(word) for word in shown.column.head.split()), 0.0)
    return FittedColumn(shown, texts, width + _CELL_PX + (_BAR_PX if shown.name in bars else 0))


def _widest(grid: Grid, texts: list[str], size: float) -> float:
    """The width of the widest text; those in the head of a block are bold."""
    widths = (
        _pixels(part, size) * (_BOLD if line.is_block else 1)
        for line, text in zip(grid.lines, texts, strict=True)
        for part in text.split("\n")
    )
    return max(widths, default=0.0)


@lru_cache(maxsize=16_384)
def _pixels(text: str, size: float = _FONT_PX) -> float:
    """About the width of a text in a wide font."""
    narrow = sum(each in _NARROW_ONES for each in text)
    wide = sum(each in _WIDE_ONES for each in text)
    normal = len(text) - narrow - wide
    return size * (narrow * _NARROW + wide * _WIDE + normal * _NORMAL)
