"""Analyses of the traces of a region, computed at a few workloads for all of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from threading import RLock
from typing import Any, Protocol, TypeVar, cast

from llmsim_magic.analyses.formulas.interpolation import (
    Choice,
    ExactPolynomial,
    Interpolation,
    interpolations,
)
from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.kernels.memoize import NumericAnalysis
from llmsim_magic.records.trace.trace import Trace

Result = TypeVar("Result")
Rectangle = tuple[int, int, int, int]  # least and largest batch, least and largest context
Varying = ExactPolynomial | Choice
Column = Varying | int | None

# So many results are computed one by one before more workloads are looked at: about as many as a
# result that all share, or formulas, take.
_FEW = 4
FEW_NUMERIC = 40
# Shares of a rectangle's sides, for workloads inside it.
_INSIDE = ((0.002, 0.0007), (0.004, 0.3), (0.03, 0.03), (0.1, 0.008), (0.3, 0.45), (0.5, 0.1),
           (0.77, 0.9), (0.9, 0.002))  # fmt: skip
# Where a mixture reads all its experts, other formulas hold than for a few tokens.
_LOWER_BOUNDS = ((1, 1), (1, 64), (16, 1), (1, 512), (128, 1))


class Traces(Protocol):
    """A region, or its like: where it holds, and its traces."""

    @property
    def rectangles(self) -> tuple[Rectangle, ...]: ...

    def evaluate(self, batch: int, context: int) -> Trace | None: ...


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A result whose numbers are formulas."""

    example: Any
    columns: tuple[Column, ...]

    def at(self, point: Point) -> list[int | None] | None:
        """The numbers at a workload; None if a formula gives no whole number there."""
        known: dict[int, int | None] = {}
        found: list[int | None] = []
        for column in self.columns:
            if column is None or isinstance(column, int):
                found.append(column)
                continue
            place = id(column)
            if place not in known:
                known[place] = column.at(*point)
                if known[place] is None:
                    return None
            found.append(known[place])
        return found


class RegionAnalyses:
    """Results that all traces of a region share, and those that are formulas.

    Both are computed at the corners of a rectangle of workloads and at some inside, from evaluated
    traces, and hold if those agree.
    """

    def __init__(self, region: Traces) -> None:
        self._region = region
        self._asked: Counter[str] = Counter()
        self._invariants: dict[str, Any] = {}
        self._fitted: dict[tuple[str, Rectangle], _Fitted | None] = {}
        self._lock = RLock()

    def invariant(self, key: str, analysis: Callable[[Trace], Result]) -> Result | None:
        """The result that all the traces have; None if they differ, or if it is not known yet."""
        with self._lock:
            if not self._is_asked_often(key, _FEW):
                return None
            if key not in self._invariants:
                self._invariants[key] = self._common(analysis)
            return cast("Result | None", self._invariants[key])

    def numeric(self, analysis: NumericAnalysis[Result], trace: Trace) -> Result | None:
        """The result for one trace by formulas; None if there are none, or none yet."""
        if not self._is_asked_often(analysis.key, FEW_NUMERIC):
            return None
        return self.numeric_at(analysis, (trace.workload.batch, trace.workload.context))

    def numeric_at(self, analysis: NumericAnalysis[Result], point: Point) -> Result | None:
        """The result for a workload by formulas; None if there are none."""
        with self._lock:
            for rectangle in self._around(point):
                place = analysis.key, rectangle
                if place not in self._fitted:
                    self._fitted[place] = self._fit(analysis, rectangle)
                fitted = self._fitted[place]
                numbers = None if fitted is None else fitted.at(point)
                if fitted is not None and numbers is not None:
                    return analysis.rebuild(fitted.example, numbers)
        return None

    def _is_asked_often(self, key: str, few: int) -> bool:
        with self._lock:
            self._asked[key] += 1
            return self._asked[key] > few

    def _around(self, point: Point) -> Iterator[Rectangle]:
        """Rectangles that contain a workload, the largest first."""
        batch, context = point
        for least, most, shortest, longest in self._region.rectangles:
            if not (least <= batch <= most and shortest <= context <= longest):
                continue
            seen = set()
            for of_batch, of_context in _LOWER_BOUNDS:
                low, near = max(least, of_batch), max(shortest, of_context)
                if low <= batch and near <= context and (low, near) not in seen:
                    seen.add((low, near))
                    yield low, most, near, longest

    def _common(self, analysis: Callable[[Trace], Result]) -> Result | None:
        points = dict.fromkeys(p for each in self._region.rectangles for p in _corners(each))
        results = [analysis(trace) for trace in self._traces(points)]
        if not results or any(result != results[0] for result in results[1:]):
            return None
        return results[0]

    def _fit(self, analysis: NumericAnalysis[Result], rectangle: Rectangle) -> _Fitted | None:
        results = self._results(analysis, _points(rectangle))
        rows = {point: tuple(analysis.numbers(result)) for point, result in results.items()}
        if len(set(map(len, rows.values()))) != 1:
            return None
        fits = _Fits(tuple(rows), rectangle)
        columns: dict[tuple[int | None, ...], Column] = {}
        order = list(zip(*rows.values(), strict=True))
        for values in dict.fromkeys(order):
            if values.count(values[0]) == len(values):
                columns[values] = values[0]
                continue
            found = None if None in values else fits.fit(cast("tuple[int, ...]", values))
            if found is None:
                return None
            columns[values] = found
        example = next(iter(results.values()))
        fitted = _Fitted(example, tuple(columns[values] for values in order))
        # The workloads next to a change of formula are looked at too.
        results |= self._results(analysis, fits.crossings())
        for point, result in results.items():
            numbers = fitted.at(point)
            if numbers is None or analysis.rebuild(example, numbers) != result:
                return None
        return fitted

    def _results(
        self, analysis: NumericAnalysis[Result], points: Sequence[Point]
    ) -> dict[Point, Result]:
        return {
            (trace.workload.batch, trace.workload.context): analysis.run(trace)
            for trace in self._traces(points)
        }

    def _traces(self, points: Sequence[Point] | dict[Point, None]) -> Iterator[Trace]:
        for point in points:
            trace = self._region.evaluate(*point)
            if trace is not None:
                yield trace


class _Fits:
    """Formulas through values at the points of a rectangle."""

    def __init__(self, points: Sequence[Point], rectangle: Rectangle) -> None:
        self._points = points
        self._rectangle = rectangle
        self._ways = interpolations(points)
        self._near = self._part(_near(rectangle))
        self._far = self._part(_far(rectangle))
        self._choices: list[Choice] = []

    def _part(self, points: Sequence[Point]) -> tuple[list[int], tuple[Interpolation, ...]]:
        """The interpolations through some of the points, with their places."""
        known = [point for point in points if point in self._points]
        return [self._points.index(point) for point in known], interpolations(known)

    def fit(self, values: tuple[int, ...]) -> Varying | None:
        single = next((p for way in self._ways if (p := way.fit(values)) is not None), None)
        if single is not None:
            return single
        near, far = (
            next((p for way in ways if (p := way.fit([values[i] for i in places]))), None)
            for places, ways in (self._near, self._far)
        )
        if near is None or far is None:
            return None
        for is_least in (True, False):
            choice = Choice(near, far, is_least)
            points = zip(self._points, values, strict=True)
            if all(choice.at(*point) == value for point, value in points):
                self._choices.append(choice)
                return choice
        return None

    def crossings(self) -> list[Point]:
        """The workloads on both sides of where one polynomial of a choice passes the other."""
        least, most, shortest, longest = self._rectangle
        found: dict[Point, None] = {}
        for choice in self._choices:
            for batch in {least, (3 * least + most) // 4, most}:
                context = _crossing(choice, batch, shortest, longest)
                if context is not None:
                    found |= dict.fromkeys([(batch, context), (batch, context + 1)])
        return list(found)


def _crossing(choice: Choice, batch: int, low: int, high: int) -> int | None:
    """The last context before the order of the polynomials changes, by bisection."""

    def is_near_less(context: int) -> bool:
        near, far = choice.near.at(batch, context), choice.far.at(batch, context)
        return (near or 0) <= (far or 0)

    first = is_near_less(low)
    if is_near_less(high) == first:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_near_less(middle) == first else (low, middle)
    return low


def _corners(rectangle: Rectangle) -> list[Point]:
    least, most, shortest, longest = rectangle
    return list(dict.fromkeys(product((least, most), (shortest, longest))))


def _near(rectangle: Rectangle) -> list[Point]:
    """Workloads at the corner of the least batch and context."""
    least, most, shortest, longest = rectangle
    near = product(range(least, least + 3), range(shortest, shortest + 5))
    return [(batch, context) for batch, context in near if batch <= most and context <= longest]


def _far(rectangle: Rectangle) -> list[Point]:
    """Workloads at the corner of the largest batch and context."""
    least, most, shortest, longest = rectangle
    far = product(range(most, most - 3, -1), range(longest, longest - 5, -1))
    return [(batch, context) for batch, context in far if batch >= least and context >= shortest]


def _points(rectangle: Rectangle) -> list[Point]:
    """Workloads at the corners of a rectangle and inside."""
    least, most, shortest, longest = rectangle
    inside = (
        (least + round((most - least) * of_batch), shortest + round((longest - shortest) * of_rest))
        for of_batch, of_rest in _INSIDE
    )
    return list(dict.fromkeys([*_near(rectangle), *inside, *_corners(rectangle), *_far(rectangle)]))
