"""Compute an analysis once for each record, and keep it as long as the record."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace

Source = TypeVar("Source", Record, Trace)
Result = TypeVar("Result")


def memoize(analysis: Callable[[Source], Result]) -> Callable[[Source], Result]:
    """Remember the analysis beside its source, as `cached_property` would were it the source's own.

    A trace and a record are frozen, so what follows from them never changes.
    """
    key = f"_{analysis.__module__}.{analysis.__qualname__}"

    @wraps(analysis)
    def remembered(source: Source) -> Result:
        kept = vars(source)
        if key not in kept:
            kept[key] = analysis(source)
        result: Result = kept[key]
        return result

    return remembered
