"""Exact polynomials in batch and context, interpolated through traced workloads.

A quantity of a pass is a polynomial in the batch B and the context X unless the model compares X
with a fixed size. A sliding window does: beyond it another polynomial holds, and the quantity is
the minimum or the maximum of the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy

Point = tuple[int, int]  # batch, context
Values = Mapping[Point, int]
Number = int | Fraction
Coefficients = tuple[tuple[Fraction, ...], ...]  # by power of the batch, then of the context


@dataclass(frozen=True, slots=True)
class Grid:
    """Points that determine a polynomial of degree n − 1 in a variable with n values."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(product(self.batches, self.contexts))


@dataclass(frozen=True)
class Polynomial:
    """`Σ coefficients[i][j] · Bⁱ · Xʲ`."""

    coefficients: Coefficients

    def at(self, point: Point) -> Number:
        batch, context = point
        terms, denominator = self._whole_terms
        total = sum(factor * batch**i * context**j for i, j, factor in terms)
        value, rest = divmod(total, denominator)
        return Fraction(total, denominator) if rest else value

    @cached_property
    def _whole_terms(self) -> tuple[tuple[tuple[int, int, int], ...], int]:
        """The terms as powers and whole factors, and their common denominator."""
        terms = [
            (i, j, factor)
            for i, row in enumerate(self.coefficients)
            for j, factor in enumerate(row)
            if factor
        ]
        denominator = math.lcm(*(factor.denominator for _, _, factor in terms))
        return tuple((i, j, int(factor * denominator)) for i, j, factor in terms), denominator

    @property
    def depends_on_context(self) -> bool:
        """Whether a term with a power of the context has a coefficient other than zero."""
        return any(factor for row in self.coefficients for factor in row[1:])

    def to_sympy(self, batch: "sympy.Symbol", context: "sympy.Symbol") -> "sympy.Expr":
        import sympy

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
    """A polynomial, or the minimum or maximum of two; `choice` is `min`, `max` or empty."""

    near: Polynomial
    far: Polynomial | None = None
    choice: str = ""

    def at(self, point: Point) -> Number:
        near = self.near.at(point)
        if self.far is None:
            return near
        far = self.far.at(point)
        return min(near, far) if self.choice == "min" else max(near, far)

    def matches(self, values: Values) -> bool:
        return all(self.at(point) == value for point, value in values.items())

    def to_sympy(self, batch: "sympy.Symbol", context: "sympy.Symbol") -> Any:
        import sympy

        near = self.near.to_sympy(batch, context)
        if self.far is None:
            return near
        choose = sympy.Min if self.choice == "min" else sympy.Max
        return choose(near, self.far.to_sympy(batch, context))


def formula(values: Values, near: Grid, far: Grid | None = None) -> Formula | None:
    """The formula that reproduces all values exactly; None if no polynomial or pair does.

    Args:
        values: The traced quantity by (batch, context).
        near: Points that determine the polynomial of short contexts.
        far: Points that determine the polynomial of long contexts. All other points in `values`
            only verify the formula.
    """
    single = Formula(_through(near, values))
    if single.matches(values):
        return single
    if far is not None and set(far.points) <= set(values):
        second = _through(far, values)
        for choice in ("min", "max"):
            both = Formula(single.near, second, choice)
            if both.matches(values):
                return both
    return None


def regime_boundary(found: Formula, near: Grid, far: Grid) -> int | None:
    """The last context of the short-context regime, by bisection; None if there is one regime."""
    if found.far is None:
        return None
    batch = far.batches[0]
    low, high = near.contexts[-1], far.contexts[0]

    def below(context: int) -> bool:
        assert found.far is not None  # noqa: S101 - checked above
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
    """The interpolating polynomial: values times the inverse Vandermonde matrices on both sides."""
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
    powers = [[node**power for power in range(len(nodes))] for node in nodes]
    return tuple(map(tuple, inverse(powers)))


def inverse(matrix: Sequence[Sequence[int]]) -> list[list[Fraction]]:
    """The inverse of a regular matrix, by Gauss-Jordan elimination."""
    size = len(matrix)
    rows = [
        [*map(Fraction, row), *(Fraction(int(place == index)) for place in range(size))]
        for index, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = next(index for index in range(column, size) if rows[index][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [value / scale for value in rows[column]]
        for index in range(size):
            factor = rows[index][column]
            if index != column and factor:
                rows[index] = [
                    value - factor * each
                    for value, each in zip(rows[index], rows[column], strict=True)
                ]
    return [row[size:] for row in rows]
