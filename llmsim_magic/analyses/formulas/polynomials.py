"""Exact polynomials in batch and context through traced points, and where a second regime begins.

What a pass does is a polynomial in its batch B and its context X as long as nothing in the model
compares X with a size of its own. A sliding window does: there the polynomial of long contexts
takes over, and the whole is the lesser or the greater of the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

import sympy

Point = tuple[int, int]  # batch, context
Values = Mapping[Point, int]
Coefficients = tuple[tuple[Fraction, ...], ...]  # by power of the batch, then of the context


@dataclass(frozen=True, slots=True)
class Grid:
    """Points that determine a polynomial: of degree one less than there are values of each."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(product(self.batches, self.contexts))


@dataclass(frozen=True, slots=True)
class Polynomial:
    """`Σ coefficients[i][j] · Bⁱ · Xʲ`."""

    coefficients: Coefficients

    def at(self, point: Point) -> Fraction:
        batch, context = point
        return sum(
            (
                factor * batch**i * context**j
                for i, row in enumerate(self.coefficients)
                for j, factor in enumerate(row)
                if factor
            ),
            Fraction(0),
        )

    def written(self, batch: sympy.Symbol, context: sympy.Symbol) -> sympy.Expr:
        return sympy.Add(
            *(
                sympy.Rational(factor.numerator, factor.denominator) * batch**i * context**j
                for i, row in enumerate(self.coefficients)
                for j, factor in enumerate(row)
                if factor
            )
        )


@dataclass(frozen=True, slots=True)
class Formula:
    """A polynomial, or the lesser or greater of two: `choice` is `min`, `max` or empty."""

    near: Polynomial
    far: Polynomial | None = None
    choice: str = ""

    def at(self, point: Point) -> Fraction:
        near = self.near.at(point)
        if self.far is None:
            return near
        far = self.far.at(point)
        return min(near, far) if self.choice == "min" else max(near, far)

    def holds(self, values: Values) -> bool:
        return all(self.at(point) == value for point, value in values.items())

    def written(self, batch: sympy.Symbol, context: sympy.Symbol) -> Any:
        near = self.near.written(batch, context)
        if self.far is None:
            return near
        choose = sympy.Min if self.choice == "min" else sympy.Max
        return choose(near, self.far.written(batch, context))


def formula(values: Values, near: Grid, far: Grid | None = None) -> Formula | None:
    """The formula through all values, or None where there is none of these kinds.

    The points of `near` determine it, those of `far` its second regime; all others check it.
    """
    one = Formula(_through(near, values))
    if one.holds(values):
        return one
    if far is not None and set(far.points) <= set(values):
        two = _through(far, values)
        for choice in ("min", "max"):
            both = Formula(one.near, two, choice)
            if both.holds(values):
                return both
    return None


def crossing(found: Formula, near: Grid, far: Grid) -> int | None:
    """The last context of the first regime; None for a formula of one regime."""
    if found.far is None:
        return None
    batch = far.batches[0]
    low, high = near.contexts[-1], far.contexts[0]

    def below(context: int) -> bool:
        assert found.far is not None  # noqa: S101 - told above
        return found.near.at((batch, context)) <= found.far.at((batch, context))

    first = below(low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if below(middle) == first else (low, middle)
    return low


def _through(grid: Grid, values: Values) -> Polynomial:
    return _interpolated(grid, tuple(values[point] for point in grid.points))


@lru_cache(maxsize=512)
def _interpolated(grid: Grid, values: Sequence[int]) -> Polynomial:
    """The polynomial of the grid's degrees: the inverse Vandermonde matrices on either side."""
    rows, columns = _inverse(grid.batches), _inverse(grid.contexts)
    width = len(grid.contexts)
    table = [values[start : start + width] for start in range(0, len(values), width)]
    by_context = [
        [sum(columns[j][k] * row[k] for k in range(width)) for j in range(width)] for row in table
    ]
    return Polynomial(
        tuple(
            tuple(
                sum((row[k] * by_context[k][j] for k in range(len(table))), Fraction(0))
                for j in range(width)
            )
            for row in rows
        )
    )


@lru_cache(maxsize=256)
def _inverse(nodes: tuple[int, ...]) -> tuple[tuple[Fraction, ...], ...]:
    """The inverse of the Vandermonde matrix of these nodes."""
    matrix = sympy.Matrix([[sympy.Integer(node) ** power for power in range(len(nodes))]
                           for node in nodes]).inv()  # fmt: skip
    return tuple(
        tuple(Fraction(int(cell.p), int(cell.q)) for cell in matrix.row(row))
        for row in range(len(nodes))
    )
