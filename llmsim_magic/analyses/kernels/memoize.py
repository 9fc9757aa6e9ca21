"""Memoize an analysis on the record or trace it was computed from."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace

Source = TypeVar("Source", Record, Trace)
Result = TypeVar("Result")


def memoize(analysis: Callable[[Source], Result]) -> Callable[[Source], Result]:
    """Cache the result of an analysis in its argument's `__dict__`, as `cached_property` does.

    Traces and records are frozen, so a cached result never becomes stale.
    """
    key = f"_{analysis.__module__}.{analysis.__qualname__}"

    @wraps(analysis)
    def memoized(source: Source) -> Result:
        cache = vars(source)
        if key not in cache:
            cache[key] = analysis(source)
        result: Result = cache[key]
        return result

    return memoized
