"""Formulas as tables: sympy expressions in `B` and `S` or `C`, or the numbers that they give."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd
import sympy

from llmsim_magic.analyses.formulas.polynomials import Formula, Point
from llmsim_magic.analyses.formulas.symbolic import QUANTITIES, Key, OperatorFormulas, Shape, Size
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views.page import as_html as page_as_html
from llmsim_magic.views.section import Section

Cell = Callable[[Size], Any]
CONTEXTS = {"prefill": "S", "decode": "C"}  # the name of the context in each phase


@defer_interrupt
def ops_table(
    operators: Sequence[OperatorFormulas], context: str, at: Point | None = None
) -> pd.DataFrame:
    """One row per operator, index `order`: formulas, or their values at a batch and context."""
    cell = _written(context) if at is None else _number(at)
    columns: dict[str, object] = {
        "path": [operator.key[0] for operator in operators],
        "op": [operator.key[1] for operator in operators],
        "input_shapes": [_shapes(operator.inputs, cell) for operator in operators],
        "output_shapes": [_shapes(operator.outputs, cell) for operator in operators],
    }
    for name in QUANTITIES:
        columns[name] = [cell(operator.quantities[name]) for operator in operators]
    return pd.DataFrame(columns, index=pd.RangeIndex(len(operators), name="order"))


@defer_interrupt
def totals_table(sums: Mapping[str, Size], context: str) -> pd.DataFrame:
    """`formula` of each quantity."""
    cell = _written(context)
    return pd.DataFrame(
        {"formula": pd.Series(list(map(cell, sums.values())), dtype=object).array},
        index=pd.Index(list(sums), name="quantity"),
    )


def shapes_of_phases(formulas: Mapping[str, Sequence[OperatorFormulas]]) -> dict[Key, str]:
    """`[B, S, 1024] → [B, S, 2048]` of each operator, with its phase where there are several."""
    found: dict[Key, list[str]] = {}
    for phase, operators in formulas.items():
        head = f"{phase} " if len(formulas) > 1 else ""
        texts: dict[tuple[int, int], str | None] = {}  # layers that are alike share their shapes
        for operator in operators:
            shapes = (id(operator.inputs), id(operator.outputs))
            if shapes not in texts:
                texts[shapes] = _shapes_text(operator, CONTEXTS[phase])
            if (written := texts[shapes]) is not None:
                found.setdefault(operator.key, []).append(f"{head}{written}")
    return {key: "; ".join(texts) for key, texts in found.items()}


def _shapes_text(operator: OperatorFormulas, context: str) -> str | None:
    """The same of one phase; None where a shape has no formula."""
    cell = _written(context)
    sides = []
    for shapes in (operator.inputs, operator.outputs):
        if shapes is None or any(size is None for shape in shapes for size in shape):
            return None
        texts = (f"[{', '.join(text(cell(size)) for size in shape)}]" for shape in shapes)
        sides.append(", ".join(texts) or "none")
    return " → ".join(sides)


def text(expression: Any) -> str:
    """`B·S`, `C + 1`, `min(C + 1, 4096)`."""
    written = str(expression).replace("**2", "²").replace("**3", "³").replace("*", "·")
    return written.replace("Min(", "min(").replace("Max(", "max(")


@defer_interrupt
def as_html(totals: pd.DataFrame, ops: pd.DataFrame) -> str:
    """Both tables as a notebook shows them."""
    return page_as_html(
        [Section("Sums over the pass", _read(totals)), Section("Operators", _read(ops))], ()
    )


def _read(table: pd.DataFrame) -> pd.DataFrame:
    """Formulas as people read them."""

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return " ".join(f"[{', '.join(map(text, shape))}]" for shape in value)
        return text(value) if isinstance(value, sympy.Basic) else value

    return pd.DataFrame(
        {name: [read(value) for value in table[name]] for name in table}, index=table.index
    )


def _shapes(shapes: tuple[Shape, ...] | None, cell: Cell) -> Any:
    if shapes is None:
        return pd.NA
    return [tuple(cell(size) for size in shape) for shape in shapes]


def _number(at: Point) -> Cell:
    def number(size: Size) -> Any:
        return pd.NA if size is None else int(size.at(at))

    return number


def _written(context: str) -> Cell:
    def written(size: Size) -> Any:
        return pd.NA if size is None else _expression(size, context)

    return written


@lru_cache(maxsize=512)
def _expression(size: Formula, context: str) -> Any:
    batch, variable = sympy.symbols(f"B {context}", positive=True, integer=True)
    return size.to_sympy(batch, variable)
