"""Tables of formulas: sympy expressions in the batch and the context, or their values."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import pandas as pd

from llmsim_magic.analyses.formulas.polynomials import Formula, Point, Polynomial
from llmsim_magic.analyses.formulas.symbolic import QUANTITIES, Key, OperatorFormulas, Shape, Size
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views.pages.html_page import as_html as page_as_html
from llmsim_magic.views.section import Page, Part, Section

Term = tuple[tuple[int, int], Fraction]  # powers of the batch and the context, and the factor
ToCell = Callable[[Size], Any]
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
CONTEXTS = {"prefill": "S", "decode": "C", "train": "S"}  # the symbol of the context in each phase


@defer_interrupt
def ops_table(
    operators: Sequence[OperatorFormulas], context: str, at: Point | None = None
) -> pd.DataFrame:
    """One row per operator in execution order, index `order`.

    Args:
        operators: the formulas of each operator.
        context: the symbol of the context, `S` or `C`.
        at: a (batch, context) to evaluate the formulas at; None keeps them symbolic.

    Returns:
        A table of sympy expressions, or of integers if `at` is given; NA if no formula holds.
    """
    to_cell = _symbolic(context) if at is None else _evaluated(at)
    columns: dict[str, object] = {
        "path": [operator.key[0] for operator in operators],
        "op": [operator.key[1] for operator in operators],
        "input_shapes": [_shape_cells(operator.inputs, to_cell) for operator in operators],
        "output_shapes": [_shape_cells(operator.outputs, to_cell) for operator in operators],
    }
    for name in QUANTITIES:
        columns[name] = [to_cell(operator.quantities[name]) for operator in operators]
    return pd.DataFrame(columns, index=pd.RangeIndex(len(operators), name="order"))


@defer_interrupt
def totals_table(sums: Mapping[str, Size], context: str) -> pd.DataFrame:
    """One row per total of the pass, index `quantity`, with its `formula`."""
    formulas = list(map(_symbolic(context), sums.values()))
    return pd.DataFrame(
        {"formula": pd.Series(formulas, dtype=object).array},
        index=pd.Index(list(sums), name="quantity"),
    )


def shapes_by_operator(formulas: Mapping[str, Sequence[OperatorFormulas]]) -> dict[Key, str]:
    """`[B, S, 1024] → [B, S, 2048]` of each operator; several phases are named and joined."""
    by_operator: dict[Key, list[str]] = {}
    for phase, operators in formulas.items():
        prefix = f"{phase} " if len(formulas) > 1 else ""
        cache: dict[tuple[int, int], str | None] = {}  # identical layers share their shapes
        for operator in operators:
            shapes = (id(operator.inputs), id(operator.outputs))
            if shapes not in cache:
                cache[shapes] = _shapes_text(operator, CONTEXTS[phase])
            if (text := cache[shapes]) is not None:
                by_operator.setdefault(operator.key, []).append(f"{prefix}{text}")
    return {key: "; ".join(texts) for key, texts in by_operator.items()}


def _shapes_text(operator: OperatorFormulas, context: str) -> str | None:
    """`[B, S, 1024] → [B, S, 2048]` in one phase; None if a shape has no formula."""
    sides = []
    for shapes in (operator.inputs, operator.outputs):
        if shapes is None or any(size is None for shape in shapes for size in shape):
            return None
        texts = (
            f"[{', '.join(_size_text(size, context) for size in shape if size is not None)}]"
            for shape in shapes
        )
        sides.append(", ".join(texts) or "none")
    return " → ".join(sides)


@lru_cache(maxsize=512)
def _size_text(size: Formula, context: str) -> str:
    """A formula as `_formula_text` writes its expression; sympy is loaded for two regimes alone."""
    if size.far is None:
        return polynomial_text(size.near, context)
    return _formula_text(_expression(size, context))


def polynomial_text(polynomial: Polynomial, context: str) -> str:
    """`B·S + 2·B`, with the terms as sympy orders them: the highest powers first."""
    terms = [
        ((i, j), factor)
        for i, row in enumerate(polynomial.coefficients)
        for j, factor in enumerate(row)
        if factor
    ]
    terms.sort(reverse=True)
    if len(terms) == 2 and _is_number_minus_power(*terms):
        terms.reverse()
    texts = [_term_text(powers, factor, ("B", context)) for powers, factor in terms]
    first, *others = texts or ["0"]
    rest = (f" - {text[1:]}" if text.startswith("-") else f" + {text}" for text in others)
    return f"{first}{''.join(rest)}"


def _is_number_minus_power(term: Term, number: Term) -> bool:
    """Whether two terms are written as `5 - B`, the number first."""
    (powers, factor), (powers_of_number, value) = term, number
    return powers_of_number == (0, 0) and 0 in powers and factor < 0 < value


def _term_text(powers: tuple[int, int], factor: Fraction, symbols: tuple[str, str]) -> str:
    """`2·B²·S/3`."""
    factors = [
        f"{symbol}{str(power).translate(_SUPERSCRIPT) if power > 1 else ''}"
        for symbol, power in zip(symbols, powers, strict=True)
        if power
    ]
    if abs(factor.numerator) != 1 or not factors:
        factors.insert(0, str(abs(factor.numerator)))
    sign = "-" if factor < 0 else ""
    divisor = f"/{factor.denominator}" if factor.denominator != 1 else ""
    return f"{sign}{'·'.join(factors)}{divisor}"


def _formula_text(expression: Any) -> str:
    """`B·S`, `C + 1`, `min(C + 1, 4096)`."""
    text = str(expression).replace("**2", "²").replace("**3", "³").replace("*", "·")
    return text.replace("Min(", "min(").replace("Max(", "max(")


@defer_interrupt
def as_html(totals: pd.DataFrame, ops: pd.DataFrame) -> str:
    """Both tables as HTML for a notebook."""
    sections = (
        Section("Sums over the pass", _with_formula_texts(totals)),
        Section("Operators", _with_formula_texts(ops)),
    )
    return page_as_html(Page("Formulas", (Part("formulas", "Formulas", "Formulas", (), sections),)))


def _with_formula_texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its expressions and shapes formatted as text."""
    import sympy

    def format_cell(value: Any) -> Any:
        if isinstance(value, list):
            return " ".join(f"[{', '.join(map(_formula_text, shape))}]" for shape in value)
        return _formula_text(value) if isinstance(value, sympy.Basic) else value

    return pd.DataFrame(
        {name: [format_cell(value) for value in table[name]] for name in table}, index=table.index
    )


def _shape_cells(shapes: tuple[Shape, ...] | None, to_cell: ToCell) -> Any:
    if shapes is None:
        return pd.NA
    return [tuple(to_cell(size) for size in shape) for shape in shapes]


def _evaluated(at: Point) -> ToCell:
    """Converts a formula to its integer value at a batch and context."""

    def to_cell(size: Size) -> Any:
        return pd.NA if size is None else int(size.at(at))

    return to_cell


def _symbolic(context: str) -> ToCell:
    """Converts a formula to a sympy expression."""

    def to_cell(size: Size) -> Any:
        return pd.NA if size is None else _expression(size, context)

    return to_cell


@lru_cache(maxsize=512)
def _expression(size: Formula, context: str) -> Any:
    import sympy

    batch, variable = sympy.symbols(f"B {context}", positive=True, integer=True)
    return size.to_sympy(batch, variable)
