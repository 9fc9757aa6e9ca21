"""Compute an analysis once for each trace, and keep it as long as the trace."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from llmsim_magic.records.trace import Trace

Result = TypeVar("Result")


def once(analysis: Callable[[Trace], Result]) -> Callable[[Trace], Result]:
    """Remember the analysis beside the trace, as `cached_property` would were it the trace's own.

    A trace is frozen, so what follows from it never changes.
    """
    key = f"_{analysis.__module__}.{analysis.__qualname__}"

    @wraps(analysis)
    def remembered(trace: Trace) -> Result:
        kept = vars(trace)
        if key not in kept:
            kept[key] = analysis(trace)
        result: Result = kept[key]
        return result

    return remembered
