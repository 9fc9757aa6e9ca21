"""Memoize an analysis on the record or trace it was computed from."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace

Source = TypeVar("Source", Record, Trace)
Options = ParamSpec("Options")
Result = TypeVar("Result")
Number = int | None
_FAMILY = "_family"  # in the `__dict__` of a trace
_MAX_RESULTS = 32  # of one analysis with options; those that were computed first are dropped


def memoize(analysis: Callable[[Source], Result]) -> Callable[[Source], Result]:
    """Cache the result of an analysis in its argument's `__dict__`, as `cached_property` does.

    Traces and records are frozen, so a cached result never becomes stale.
    """
    key = _key(analysis)

    @wraps(analysis)
    def memoized(source: Source) -> Result:
        cache = vars(source)
        if key not in cache:
            cache[key] = analysis(source)
        result: Result = cache[key]
        return result

    return memoized


def memoize_by_options(
    analysis: Callable[Concatenate[Source, Options], Result],
) -> Callable[Concatenate[Source, Options], Result]:
    """As `memoize`, for an analysis with further arguments, which must be hashable."""
    key = _key(analysis)

    @wraps(analysis)
    def memoized(source: Source, /, *options: Options.args, **named: Options.kwargs) -> Result:
        results: dict[object, Result] = vars(source).setdefault(key, {})
        asked = (options, *sorted(named.items()))
        if asked not in results:
            result = analysis(source, *options, **named)
            while len(results) >= _MAX_RESULTS:
                results.pop(next(iter(results)), None)
            results[asked] = result
        return results[asked]

    return memoized


class NumericAnalysis(Generic[Result]):
    """An analysis whose result is numbers around a part that no workload changes.

    Attributes:
        key: the name of the analysis.
        run: the analysis.
        numbers: the numbers in a result.
        rebuild: a result like another one, with other numbers.
    """

    def __init__(
        self,
        run: Callable[[Trace], Result],
        numbers: Callable[[Result], Sequence[Number]],
        rebuild: Callable[[Result, Sequence[Number]], Result],
    ) -> None:
        self.key = _key(run)
        self.run, self.numbers, self.rebuild = run, numbers, rebuild


class Family(Protocol):
    """Traces of one structure that formulas give: what is known of all of them."""

    def invariant(self, key: str, analysis: Callable[[Trace], Result]) -> Result | None:
        """The result that all the traces have; None if they differ, or if it is not known yet."""

    def numeric(self, analysis: NumericAnalysis[Result], trace: Trace) -> Result | None:
        """The result for one trace by formulas; None if there are none, or none yet."""


def join_family(trace: Trace, family: Family) -> None:
    """Have analyses of a trace use what is known of traces like it."""
    vars(trace)[_FAMILY] = family


def memoize_invariant(analysis: Callable[[Trace], Result]) -> Callable[[Trace], Result]:
    """As `memoize`, for an analysis whose result is the same for many workloads."""
    key = _key(analysis)

    @wraps(analysis)
    def memoized(trace: Trace) -> Result:
        cache = vars(trace)
        if key not in cache:
            family: Family | None = cache.get(_FAMILY)
            known = None if family is None else family.invariant(key, analysis)
            cache[key] = analysis(trace) if known is None else known
        result: Result = cache[key]
        return result

    return memoized


def memoize_numeric(analysis: NumericAnalysis[Result]) -> Callable[[Trace], Result]:
    """As `memoize`, for an analysis whose numbers are formulas of batch and context."""

    @wraps(analysis.run)
    def memoized(trace: Trace) -> Result:
        cache = vars(trace)
        if analysis.key not in cache:
            family: Family | None = cache.get(_FAMILY)
            known = None if family is None else family.numeric(analysis, trace)
            cache[analysis.key] = analysis.run(trace) if known is None else known
        result: Result = cache[analysis.key]
        return result

    return memoized


def _key(analysis: Callable[..., Any]) -> str:
    return f"_{analysis.__module__}.{analysis.__qualname__}"
