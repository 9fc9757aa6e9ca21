"""Which columns of a grid fit a width, and the table of these."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmsim_magic.views.screen.columns import COLUMNS, Column
from llmsim_magic.views.screen.grid import Grid, ShownColumn

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_OPERATOR = COLUMNS["op"]
_VERDICTS = {"yes": "green", "no": "bold red"}
_GAP = 2  # blank characters between columns
_LEAST_PROSE = 30  # width below which a sentence is not worth its column
_LEAST_TEXT = 12
_MAIN = 5  # importance up to which a column is worth shorter texts in all others


@dataclass(frozen=True, slots=True)
class Fitted:
    """The columns that fit, with their widths, and the heads of those that do not."""

    columns: list[ShownColumn]
    widths: list[int]
    left_out: list[str]


def fit(grid: Grid, width: int) -> Fitted:
    """Choose columns by their importance, as many as fit; shorter texts where the full do not.

    A column that is always shown is cropped where it alone is too wide.
    """
    fitted = _full_or_shorter(grid.columns, width)
    if grid.with_operators is None or any(c.column is _OPERATOR for c in fitted.columns):
        return fitted
    path, *others = grid.columns
    named = replace(path, texts=grid.with_operators)
    return _full_or_shorter([named, *(c for c in others if c.column is not _OPERATOR)], width)


def _full_or_shorter(columns: list[ShownColumn], width: int) -> Fitted:
    """Shorter texts, or heads of two lines, where that shows more main columns."""
    short = [
        each if each.shorter is None else replace(each, texts=each.shorter) for each in columns
    ]
    wrapped = [list(map(_with_wrapped_head, each)) for each in (columns, short)]
    return max((_choose(each, width) for each in (columns, short, *wrapped)), key=_main_columns)


def _with_wrapped_head(shown: ShownColumn) -> ShownColumn:
    """The column with its head in two lines, the longer of which is as short as it can be."""
    words = shown.column.head.split()
    heads = [
        f"{' '.join(words[:place])}\n{' '.join(words[place:])}" for place in range(1, len(words))
    ]
    head = min(heads, key=_longest_line, default=shown.column.head)
    return replace(shown, column=replace(shown.column, head=head))


def _longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def _main_columns(fitted: Fitted) -> int:
    return sum(column.importance <= _MAIN for column in fitted.columns)


def _choose(columns: list[ShownColumn], width: int) -> Fitted:
    """The most important columns that fit; a sentence gets what all main ones leave."""
    chosen: dict[int, int] = {}  # position → width
    left = width + _GAP
    order = sorted(range(len(columns)), key=lambda place: columns[place].importance)
    for place in order:
        column = columns[place]
        needed = natural_width(column)
        if column.column.kind == "prose":
            room = _LEAST_PROSE if column.importance <= _MAIN else max(_LEAST_PROSE, left - _GAP)
            needed = min(needed, room)
        elif column.importance > _MAIN:
            left -= _widen_prose(columns, chosen, left)
        if column.importance == 0 and needed + _GAP > left:
            needed = max(left - _GAP, _LEAST_TEXT if chosen else width)
        if needed + _GAP > left:
            break
        chosen[place] = needed
        left -= needed + _GAP
    _widen_prose(columns, chosen, left)
    places = sorted(chosen)
    return Fitted(
        [columns[place] for place in places],
        [chosen[place] for place in places],
        [
            each.column.head.replace("\n", " ")
            for place, each in enumerate(columns)
            if place not in chosen
        ],
    )


def _widen_prose(columns: list[ShownColumn], chosen: dict[int, int], left: int) -> int:
    """Give sentences the room that is left, as far as they need it; return how much that is."""
    given = 0
    for place, width in chosen.items():
        if columns[place].column.kind == "prose":
            more = max(min(natural_width(columns[place]) - width, left - given), 0)
            chosen[place] = width + more
            given += more
    return given


def natural_width(column: ShownColumn) -> int:
    """The width of the widest text of a column, in cells of a terminal."""
    from rich.cells import cell_len

    return max(map(cell_len, (*column.column.head.split("\n"), *column.texts)), default=0)


def as_table(grid: Grid, fitted: Fitted) -> "Table":
    """The columns that fit as a table: texts to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    for shown, width in zip(fitted.columns, fitted.widths, strict=True):
        is_prose = shown.column.kind == "prose"
        table.add_column(
            Text(shown.column.head),
            justify="left" if shown.is_text else "right",
            no_wrap=not is_prose,
            overflow="fold" if is_prose else "ellipsis",
            width=width,
        )
    for place, line in enumerate(grid.lines):
        cells = [
            _cell(shown.texts[place], width, shown.column)
            for shown, width in zip(fitted.columns, fitted.widths, strict=True)
        ]
        table.add_row(*cells, style="bold cyan" if line.is_block else None)
    return table


def _cell(text: str, width: int, column: Column) -> "Text":
    from rich.text import Text

    if column.kind == "path":
        return Text(_crop_path(text, width))
    verdict = _VERDICTS.get(text, "") if column.head in ("fits", "holds") else ""
    return Text(text, style=verdict)


def _crop_path(text: str, width: int) -> str:
    """A path without its beginning where it is too wide: its end tells it from others."""
    if len(text) <= width:
        return text
    indent = len(text) - len(text.lstrip())
    room = max(width - indent - 1, 1)
    return f"{text[:indent]}…{text[-room:]}"


def names_of(heads: Iterable[str], width: int) -> str:
    """`a, b and 3 more`: as many names of a list as fit, and how many others there are."""
    names = list(dict.fromkeys(heads))
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        text = ", ".join(names[:shown]) + (f" and {rest} more" if rest else "")
        if len(text) <= width:
            return text
    return f"{len(names)} columns"
