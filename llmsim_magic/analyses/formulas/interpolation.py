"""Fit exact polynomials to many quantities of the same traced workloads at once."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

from llmsim_magic.analyses.formulas.polynomials import Point, inverse

Exponents = tuple[int, int]  # of the batch and of the context
# The least degrees that fit are used: most quantities are linear in the batch, and attention over
# all tokens is quadratic in the context.
DEGREES = ((1, 2), (2, 2))


@dataclass(frozen=True, slots=True)
class ExactPolynomial:
    """`Σ numerator · Bⁱ · Xʲ / denominator` over terms `(i, j, numerator)`."""

    terms: tuple[tuple[int, int, int], ...]
    denominator: int

    def at(self, batch: int, context: int) -> int | None:
        """The value; None if it is not a whole number."""
        total = sum(
            numerator * batch**of_batch * context**of_context
            for of_batch, of_context, numerator in self.terms
        )
        value, rest = divmod(total, self.denominator)
        return None if rest else value


@dataclass(frozen=True, slots=True)
class Choice:
    """The lesser of two polynomials, or the greater one.

    A table of embeddings is read row by row, until there are more tokens than rows.
    """

    near: ExactPolynomial
    far: ExactPolynomial
    is_least: bool

    def at(self, batch: int, context: int) -> int | None:
        """The value; None if one is not a whole number."""
        near, far = self.near.at(batch, context), self.far.at(batch, context)
        if near is None or far is None:
            return None
        return min(near, far) if self.is_least else max(near, far)


@dataclass(frozen=True, slots=True)
class Interpolation:
    """The polynomials that some workloads determine and the others check.

    Attributes:
        monomials: the exponents of each term.
        used: indices of the workloads that determine the coefficients.
        inverse: the inverse of the matrix of monomials at these workloads, times `denominator`.
        denominator: common denominator of the inverse.
        checks: the monomials at each of the other workloads, with its index.
    """

    monomials: tuple[Exponents, ...]
    used: tuple[int, ...]
    inverse: tuple[tuple[int, ...], ...]
    denominator: int
    checks: tuple[tuple[int, tuple[int, ...]], ...]

    def fit(self, values: Sequence[int]) -> ExactPolynomial | None:
        """The polynomial through the values of all workloads; None if there is none."""
        known = [values[index] for index in self.used]
        numerators = [
            sum(factor * value for factor, value in zip(row, known, strict=True))
            for row in self.inverse
        ]
        for index, powers in self.checks:
            expected = values[index] * self.denominator
            if sum(n * power for n, power in zip(numerators, powers, strict=True)) != expected:
                return None
        common = math.gcd(self.denominator, *numerators)
        terms = tuple(
            (*exponents, numerator // common)
            for exponents, numerator in zip(self.monomials, numerators, strict=True)
            if numerator
        )
        return ExactPolynomial(terms, self.denominator // common)


def interpolations(points: Iterable[Point]) -> tuple[Interpolation, ...]:
    """The interpolations through these workloads, lowest degree first.

    Each leaves at least one batch, one context and two workloads to check it; a batch or a context
    that is the same in all workloads is a constant.
    """
    known = tuple(points)
    batches, contexts = ({point[axis] for point in known} for axis in (0, 1))
    found: dict[tuple[Exponents, ...], Interpolation] = {}
    for of_batch, of_context in DEGREES:
        if not all(
            len(values) == 1 or len(values) >= degree + 2
            for values, degree in ((batches, of_batch), (contexts, of_context))
        ):
            continue
        monomials = tuple(
            product(
                range(of_batch + 1 if len(batches) > 1 else 1),
                range(of_context + 1 if len(contexts) > 1 else 1),
            )
        )
        if monomials not in found and len(known) >= len(monomials) + 2:
            through = _interpolation(known, monomials)
            if through is not None:
                found[monomials] = through
    return tuple(found.values())


@lru_cache(maxsize=64)
def _interpolation(
    points: tuple[Point, ...], monomials: tuple[Exponents, ...]
) -> Interpolation | None:
    """None if the workloads do not determine all coefficients."""
    rows = [
        tuple(batch**of_batch * context**of_context for of_batch, of_context in monomials)
        for batch, context in points
    ]
    used: list[int] = []
    reduced: list[tuple[int, list[Fraction]]] = []  # pivot column and row
    for index, row in enumerate(rows):
        rest = _reduce([Fraction(value) for value in row], reduced)
        pivot = next((place for place, value in enumerate(rest) if value), None)
        if pivot is not None:
            used.append(index)
            reduced.append((pivot, [value / rest[pivot] for value in rest]))
    if len(used) < len(monomials):
        return None
    inverted = inverse([rows[index] for index in used])
    denominator = math.lcm(*(value.denominator for row in inverted for value in row))
    return Interpolation(
        monomials,
        tuple(used),
        tuple(tuple(int(value * denominator) for value in row) for row in inverted),
        denominator,
        tuple((index, row) for index, row in enumerate(rows) if index not in used),
    )


def _reduce(row: list[Fraction], reduced: list[tuple[int, list[Fraction]]]) -> list[Fraction]:
    """The row minus multiples of earlier rows, so that it is zero at their pivots."""
    for pivot, other in reduced:
        factor = row[pivot]
        if factor:
            row = [value - factor * each for value, each in zip(row, other, strict=True)]
    return row
