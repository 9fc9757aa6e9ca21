"""A DataFrame as the lines and columns that a terminal shows, whatever its width."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float, is_float_dtype

from llmsim_magic.records.printable import printable
from llmsim_magic.views import units
from llmsim_magic.views.screen import cells
from llmsim_magic.views.screen.columns import COLUMNS, TEXTS, Column, declared
from llmsim_magic.views.screen.folding import OWN_ROW, Line, fold, fold_by_pass, relative
from llmsim_magic.views.screen.screen_table import FORMULA, WORKLOAD, for_screen, one_formula

# Columns that are said once above the table where every row has the same value.
_SAID_ONCE = ("device", "runtime", "launch", "phase", "batch", "context", "measured", "devices")
# Columns of which the head of a block without a row of its own has the sum over its layers.
_SUMMED = frozenset({"flops", "elementwise_ops", "bytes_read", "bytes_written", "saved_bytes",
                     "time_s", "time_share", "share"})  # fmt: skip
_NUMBER = re.compile(r"\d+")
_SHORT_OP = 18  # characters of a type of operator in a narrow terminal
_MASKED = (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)
_BETWEEN_SHAPES = "], ["
_MORE_SHAPES = re.compile(r"\] \+\d")
_SYMBOL = re.compile(r"\[(?:.*, )?[BSC][],· ]")


@dataclass(frozen=True, slots=True)
class ShownColumn:
    """One column of a grid.

    Attributes:
        column: how it is shown.
        texts: its text in each line.
        shorter: shorter texts for a narrow screen, if it has them.
        exact: the exact value of each line where the text rounds it; otherwise empty.
        sizes: the value of each line as a number, of a column of numbers; 0 for a sum of layers.
        of_layer: of the head of a block that has a sum over its layers, the text for one layer.
        name: its name in the table.
    """

    column: Column
    texts: list[str]
    shorter: list[str] | None = None
    exact: list[str] | None = None
    sizes: list[float] | None = None
    of_layer: dict[int, str] = field(default_factory=dict)
    name: str = ""

    @property
    def importance(self) -> int:
        """How early the column goes where not all fit: 0 stays."""
        return self.column.importance or 0

    @property
    def is_text(self) -> bool:
        """Whether it is aligned to the left; a table of quantities has names among its values."""
        return self.column.kind != "number" and self.column.kind in TEXTS


@dataclass(frozen=True, slots=True)
class Grid:
    """What a terminal shows of a table, before it is cut to a width.

    Attributes:
        lines: the lines, in which identical layers are one block.
        columns: the columns, in the order of the table.
        once: what is the same in every row, such as `batch 1`.
        details: names of columns that only files have.
        with_operators: paths with the function that each line calls, for a table without room for
            its operators.
    """

    lines: list[Line]
    columns: list[ShownColumn]
    once: list[str]
    details: list[str]
    with_operators: list[str] | None = None

    @property
    def layers(self) -> int:
        """The most layers that one line stands for."""
        return max((line.layers for line in self.lines), default=1)

    @property
    def legend(self) -> list[str]:
        """What each sign that the grid uses stands for."""
        texts = [text for column in self.columns for text in column.texts]
        signs = (
            (self.layers > 1, "×N: N identical layers, and below it one of them"),
            (any(map(_MORE_SHAPES.search, texts)), "+N: N more shapes"),
            (
                any(map(_SYMBOL.search, texts)),
                "B: batch, S: tokens read (1 in decode), C: tokens cached",
            ),
        )
        return [sign for is_used, sign in signs if is_used]


# Grids made so far with their tables, by the identity of these; None where they are not kept.
_made: ContextVar["dict[int, tuple[pd.DataFrame, NamedGrids]] | None"] = ContextVar(
    "made grids", default=None
)


@contextmanager
def shared_grids() -> Iterator[None]:
    """Makes the grid of each table once until the context ends; tables must not change in it."""
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def grids(table: pd.DataFrame) -> "NamedGrids":
    """The grid of a table; where operators repeat by execution, one for each, with its name."""
    made = _made.get()
    if made is None:
        return tuple(_new_grids(table))
    if id(table) not in made:
        made[id(table)] = table, tuple(_new_grids(table))
    return made[id(table)][1]


def _new_grids(table: pd.DataFrame) -> Iterator[tuple[str, Grid]]:
    if table.index.name == "order" and {"runtime", "launch"} <= set(table):
        by_execution = table.groupby(["runtime", "launch"], sort=False)
        if len(by_execution) > 1:
            for (runtime, launch), rows in by_execution:
                yield f"{runtime}, {launch}", grid(rows.drop(columns=["runtime", "launch"]))
            return
    yield "", grid(table)


NamedGrids = tuple[tuple[str, Grid], ...]


@dataclass(frozen=True, slots=True)
class _Values:
    """The cells of a table as lists, which are much faster to read one by one.

    Attributes:
        columns: the cells of each column, by its name.
        floats: names of the columns of floats.
        rows: how many rows there are.
    """

    columns: dict[str, list[Any]]
    floats: frozenset[str]
    rows: int


def _values_of(table: pd.DataFrame) -> _Values:
    return _Values(
        {str(name): _cells_of(table[name]) for name in table},
        frozenset(str(name) for name, dtype in table.dtypes.items() if is_float_dtype(dtype)),
        len(table),
    )


def _cells_of(column: "pd.Series[Any]") -> list[Any]:
    """As `list(column)`, without a call for each cell."""
    array = column.array
    if not isinstance(array, _MASKED):
        return column.tolist()
    found = list(array.to_numpy(dtype=array.dtype.type, na_value=0))
    for place in np.flatnonzero(array.isna()):
        found[place] = pd.NA
    return found


def grid(table: pd.DataFrame) -> Grid:
    """The lines and columns of a table."""
    named = table.reset_index() if table.index.name else table.reset_index(drop=True)
    special = _columns_of(named)
    values = _values_of(for_screen(named))
    once = [name for name in _SAID_ONCE if _is_constant(values, name)]
    said = [f"{declared(name).head} {_text(values.columns[name][0], name)}" for name in once]
    names = [name for name in values.columns if name not in once]
    details = [
        name
        for name in names
        if declared(name).importance is None and name not in ("order", "changes", "pass")
    ]
    shown = [name for name in names if declared(name).importance is not None]
    shown = [
        name
        for name in shown
        if name == "path" or not all(map(cells.is_missing, values.columns[name]))
    ]
    path = next((name for name in shown if _is_row_path(name)), None)
    if path is not None:
        beside = [name for name in shown if name == "source_operator"]
        shown = [path, *beside, *(name for name in shown if name not in (path, *beside))]
    lines = _lines(values, path, shown)
    columns = [
        replace(each, column=special.get(name, each.column), name=name)
        for name in shown
        for each in [_shown(values, name, lines, is_path=name == path)]
    ]
    return Grid(lines, columns, said, details, _with_operators(values, lines))


def _columns_of(table: pd.DataFrame) -> dict[str, Column]:
    """Columns that this table shows in another way than most.

    Parameters of an operator are all that it has, those of a module are its own. A comparison has
    columns with the names of models. What is asked of devices for a training step is how large one
    fits, and how many hold it.
    """
    if "largest_micro_batch" in table:
        late = {"longest_context": 4, "total_bytes": 7, "usable_bytes": 8}
        late |= dict.fromkeys(("runtime", "launch", "devices"), 9)
        return {name: replace(COLUMNS[name], importance=each) for name, each in late.items()}
    if "params" in table and "params_total" not in table:
        return {"params": replace(COLUMNS["params"], head="params")}
    if "unit" not in table:
        return {}
    return {
        name: Column(printable(name), "number", 1)
        for name in map(str, table)
        if name not in COLUMNS
    }


def _with_operators(table: _Values, lines: list[Line]) -> list[str] | None:
    """`self_attn:apply_rotary_pos_emb` where a line is a function that a module calls."""
    if not {"path", "op"} <= set(table.columns):
        return None
    paths, ops = list(map(str, table.columns["path"])), table.columns["op"]
    numbers = Counter(paths)
    containers = {path for path, number in numbers.items() if number > 1}
    containers |= _containers(numbers)
    found = []
    for line in lines:
        row = line.rows[0] if line.rows else None
        if row is None or paths[row] not in containers:
            found.append(line.label)
        else:
            found.append(f"{line.label.replace(OWN_ROW, '')}:{printable(str(ops[row]))}")
    return found


def _containers(paths: Iterable[str]) -> set[str]:
    """The paths of all modules that hold others."""
    found: set[str] = set()
    for path in paths:
        end = path.rfind(".")
        while end >= 0 and path[:end] not in found:  # whose own containers are found already
            found.add(path[:end])
            end = path.rfind(".", 0, end)
    return found


def _lines(table: _Values, path: str | None, shown: list[str]) -> list[Line]:
    if path is None:
        return [Line("", (place,)) for place in range(table.rows)]
    rest = [name for name in shown if name != path and name not in table.floats]
    # The rank of an operator in the pass differs from layer to layer, and a band by a rounding.
    rest = [name for name in rest if name != "rank" and declared(name).kind != "interval"]
    keys = _keys([_key_column(table.columns[name], name) for name in rest], table.rows)
    # The table of layers ends with all other operators.
    missing = "(outside layers)" if path == "path" and "layer" in table.columns else ""
    paths = [
        missing if cells.is_missing(value) else printable(str(value))
        for value in table.columns[path]
    ]
    parts = table.columns.get("pass")
    return fold(paths, keys) if parts is None else fold_by_pass(paths, keys, parts)


def _keys(columns: Sequence[list[Hashable]], rows: int) -> list[tuple[Hashable, ...]]:
    """What has to be equal in identical layers, for each row.

    Texts that may hold a path stay, for they count relative to a layer. A number stands for all
    others, as few of them differ.
    """
    with_paths = [
        any("." in each for each in column if isinstance(each, str)) for column in columns
    ]
    plain = [column for column, holds in zip(columns, with_paths, strict=True) if not holds]
    paths = [column for column, holds in zip(columns, with_paths, strict=True) if holds]
    numbers: dict[tuple[Hashable, ...], int] = {}
    of_rows = zip(*plain, strict=True) if plain else [()] * rows
    numbered = [numbers.setdefault(each, len(numbers)) for each in of_rows]
    return list(zip(numbered, *paths, strict=True))


def _key_column(values: list[Any], name: str) -> list[Hashable]:
    """The cells of a column by what tells them apart; `keys of layer 3` without the number."""
    if name == "through":
        return [_NUMBER.sub("#", str(value)) for value in values]
    kinds = set(map(type, values))
    if kinds in ({str}, {bool}):
        return values
    if kinds <= {int, np.int64, type(pd.NA)}:
        return [None if value is pd.NA else value for value in values]
    known: dict[int, str] = {}  # by identity: identical layers share the lists of their shapes
    found: list[Hashable] = []
    for value in values:
        text = value if isinstance(value, str) else known.get(id(value))
        if text is None:
            text = known[id(value)] = str(value)
        found.append(text)
    return found


def _shown(table: _Values, name: str, lines: list[Line], *, is_path: bool) -> ShownColumn:
    column = declared(name)
    if is_path:
        return ShownColumn(column, [line.label for line in lines])
    of_row = table.columns[name]
    averaged = name in table.floats
    values = [_value(of_row, line.rows, averaged=averaged) for line in lines]
    sizes = cells.sizes(values)
    of_layer: dict[int, str] = {}
    if name in _SUMMED:
        for place in _heads_without_rows(lines):
            total = _sum(of_row, _rows_inside(lines, place))
            values[place] = _divided(total, _layers_around(lines, place))
            one = _divided(values[place], lines[place].layers)
            (of_layer[place],) = cells.format_cells([one], column.kind)
    if name == FORMULA:
        return _formula_column(values)
    if WORKLOAD.fullmatch(name):
        return _workload_column(name, values)
    if column.kind == "interval":
        return ShownColumn(column, [_interval(value, name) for value in values])
    if column.kind == "path":
        values = _relative_paths(values, lines)
    texts = cells.format_cells(values, column.kind)
    exact = cells.exact_cells(values)
    return ShownColumn(column, texts, _shorter(name, texts), exact, sizes, of_layer)


def _value(of_row: list[Any], rows: tuple[int, ...], *, averaged: bool) -> Any:
    """The value of a line: that of its first row, or the mean over its layers."""
    if not rows:
        return pd.NA
    if not averaged or len(rows) == 1:
        return of_row[rows[0]]
    known = [of_row[row] for row in rows if not cells.is_missing(of_row[row])]
    return sum(known) / len(known) if known else pd.NA


def _heads_without_rows(lines: list[Line]) -> list[int]:
    return [place for place, line in enumerate(lines) if line.is_block and not line.rows]


def _rows_inside(lines: list[Line], head: int) -> tuple[int, ...]:
    found: list[int] = []
    for line in lines[head + 1 :]:
        if line.depth <= lines[head].depth:
            break
        found += line.rows
    return tuple(found)


def _sum(of_row: list[Any], rows: tuple[int, ...]) -> Any:
    known = [of_row[row] for row in rows if not cells.is_missing(of_row[row])]
    return sum(known) if known else pd.NA


def _layers_around(lines: list[Line], head: int) -> int:
    """How many layers have the block at a place; the lines below a block are of one layer."""
    depth, number = lines[head].depth, 1
    for line in reversed(lines[:head]):
        if line.is_block and line.depth < depth:
            depth, number = line.depth, number * line.layers
    return number


def _divided(value: Any, layers: int) -> Any:
    """The part of a sum that one of several identical layers has."""
    if cells.is_missing(value):
        return value
    return value / layers if is_float(value) or value % layers else value // layers


def _shorter(name: str, texts: list[str]) -> list[str] | None:
    """Shorter texts of a column for a narrow terminal, if it has them."""
    if declared(name).kind == "shapes":
        return _without_blanks(texts)
    if name in ("op", "type"):
        return [text if len(text) <= _SHORT_OP else f"{text[: _SHORT_OP - 1]}…" for text in texts]
    return None


def _relative_paths(values: list[Any], lines: list[Line]) -> list[Any]:
    """Paths below the head of a block, relative to the layer that the block shows."""
    found, stack, index, depth = [], "", 0, 0
    for value, line in zip(values, lines, strict=True):
        if line.depth <= depth:
            stack = ""
        if line.indices and not stack:
            stack, index, depth = line.stack, line.indices[0], line.depth
        found.append(relative(value, stack, index) if isinstance(value, str) else value)
    return found


def _workload_column(name: str, values: list[Any]) -> ShownColumn:
    """A workload's output shapes; the exact value has the inputs too."""
    exact = ["" if cells.is_missing(value) else value for value in values]
    outputs = _without_blanks([_only_first(value.rpartition(" → ")[2]) for value in exact])
    return ShownColumn(Column(name, "shapes", 20), outputs, exact=exact)


def _formula_column(values: list[Any]) -> ShownColumn:
    """Shapes as formulas: inputs and outputs, or outputs alone where these do not fit."""
    exact = ["" if cells.is_missing(value) else value for value in values]
    full = ["\n".join(map(_first_shapes, text.split("\n"))) for text in exact]
    outputs = [one_formula([_first_output(line) for line in text.split("\n")]) for text in exact]
    column = Column("formula", "shapes", 1)
    return ShownColumn(column, _without_blanks(full), _without_blanks(outputs), exact)


def _first_shapes(text: str) -> str:
    """`[B, S, 1024] +1 → [B, S, 128]`: the first shape of each side, and how many more."""
    return " → ".join(map(_first_shape, text.split(" → ")))


def _first_output(text: str) -> str:
    """`[B, S, 128]`, with the phase before it if the text names one."""
    phase = text.split(" [", maxsplit=1)[0] if text.startswith(("prefill", "decode")) else ""
    return f"{phase} {_only_first(text.rpartition(' → ')[2])}".strip()


def _without_blanks(shapes: list[str]) -> list[str]:
    return [text.replace(", ", ",").replace(" + ", "+") for text in shapes]


def _only_first(text: str) -> str:
    """`[B, S, 128]` of several shapes; `none` stays."""
    first, separator, _ = text.partition(_BETWEEN_SHAPES)
    return f"{first}]" if separator else text


def _first_shape(text: str) -> str:
    """`[B, S, 128] +1`: the first of several shapes, and how many more."""
    first, *rest = text.split(_BETWEEN_SHAPES)
    return f"{first}] +{len(rest)}" if rest else text


def _is_row_path(name: str) -> bool:
    column = declared(name)
    return column.kind == "path" and column.importance == 0


def _is_constant(table: _Values, name: str) -> bool:
    if name not in table.columns or table.rows < 2:
        return False
    values = table.columns[name]
    return not any(map(cells.is_missing, values)) and len(set(map(str, values))) == 1


def _text(value: Any, name: str) -> str:
    return cells.format_cells([value], declared(name).kind)[0]


def _interval(ends: Any, name: str) -> str:
    if not isinstance(ends, tuple) or any(map(cells.is_missing, ends)):
        return ""
    if name.endswith("per_s_interval"):
        return f"{units.rate(ends[0])}–{units.rate(ends[1])}"
    return units.seconds_interval(*ends)
