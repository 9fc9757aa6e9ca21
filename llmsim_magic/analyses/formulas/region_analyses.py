"""Analyses of the traces of a region, computed at a few workloads for all of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, Protocol, TypeVar, cast

from llmsim_magic.analyses.formulas.interpolation import ExactPolynomial, interpolations
from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.kernels.memoize import NumericAnalysis
from llmsim_magic.records.trace.trace import Trace

Result = TypeVar("Result")
Rectangle = tuple[int, int, int, int]  # least and largest batch, least and largest context
Column = ExactPolynomial | int | None

# A few results are computed one by one before more workloads are looked at to have formulas.
_FEW = 4
# Shares of a rectangle's sides, beside its corners; sorted, so that they are far apart.
_BATCHES = (0.0, 0.002, 0.004, 0.03, 0.3, 0.77)
_CONTEXTS = (0.0, 0.0007, 0.002, 0.03, 0.2, 0.45, 0.9)
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
            if not isinstance(column, ExactPolynomial):
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
            if not self._is_asked_often(key):
                return None
            if key not in self._invariants:
                self._invariants[key] = self._common(analysis)
            return cast("Result | None", self._invariants[key])

    def numeric(self, analysis: NumericAnalysis[Result], trace: Trace) -> Result | None:
        """The result for one trace by formulas; None if there are none, or none yet."""
        if not self._is_asked_often(analysis.key):
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

    def _is_asked_often(self, key: str) -> bool:
        with self._lock:
            self._asked[key] += 1
            return self._asked[key] > _FEW

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
        traces = {
            (trace.workload.batch, trace.workload.context): trace
            for trace in self._traces(_points(rectangle))
        }
        ways = interpolations(traces)
        if not ways:
            return None
        results = [analysis.run(trace) for trace in traces.values()]
        rows = [tuple(analysis.numbers(result)) for result in results]
        if len({len(row) for row in rows}) > 1:
            return None
        seen: dict[tuple[int | None, ...], Column] = {}
        columns: list[Column] = []
        for values in zip(*rows, strict=True):
            if values not in seen:
                if values.count(values[0]) == len(values):
                    seen[values] = values[0]
                elif None in values:
                    return None
                else:
                    fits = (way.fit(cast("Sequence[int]", values)) for way in ways)
                    seen[values] = next((each for each in fits if each is not None), None)
                    if seen[values] is None:
                        return None
            columns.append(seen[values])
        fitted = _Fitted(results[0], tuple(columns))
        return fitted if self._rebuilds(analysis, fitted, traces, results) else None

    def _rebuilds(
        self,
        analysis: NumericAnalysis[Result],
        fitted: _Fitted,
        points: Sequence[Point] | dict[Point, Trace],
        results: Sequence[Result],
    ) -> bool:
        """Whether formulas give the whole result at each workload that determined them."""
        for point, result in zip(points, results, strict=True):
            numbers = fitted.at(point)
            if numbers is None or analysis.rebuild(fitted.example, numbers) != result:
                return False
        return True

    def _traces(self, points: Sequence[Point] | dict[Point, None]) -> Iterator[Trace]:
        for point in points:
            trace = self._region.evaluate(*point)
            if trace is not None:
                yield trace


def _corners(rectangle: Rectangle) -> list[Point]:
    least, most, shortest, longest = rectangle
    found = ((b, x) for b in (least, most) for x in (shortest, longest))
    return list(dict.fromkeys(found))


def _points(rectangle: Rectangle) -> list[Point]:
    """The corners of a rectangle, some workloads on its sides and some inside."""
    least, most, shortest, longest = rectangle
    batches = _spread(least, most, _BATCHES)
    contexts = _spread(shortest, longest, _CONTEXTS)
    inside = [
        (batches[(3 * place + 1) % len(batches)], context) for place, context in enumerate(contexts)
    ]
    sides = [(batch, contexts[place % len(contexts)]) for place, batch in enumerate(batches)]
    near = [(batch, context) for batch in batches[:2] for context in contexts[:3]]
    return list(dict.fromkeys([*near, *sides, *inside, *_corners(rectangle)]))


def _spread(least: int, most: int, shares: Sequence[float]) -> list[int]:
    found = {least + place for place in range(3)} | {most}
    found |= {least + round((most - least) * share) for share in shares}
    return sorted(number for number in found if least <= number <= most)
