"""Columns with a row for each operator of one or more passes, from values of recorded operators."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmsim_magic.records.trace.recorded import Operator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import floats, integers

Item = TypeVar("Item")
Made = TypeVar("Made")
Objects = npt.NDArray[np.object_]


class OperatorColumns:
    """Repeats values of recorded operators for every operator of the passes.

    Args:
        traces: The passes; the rows of one follow those of the other.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._traces = traces
        starts = np.cumsum([0, *(len(trace.recorded.operators) for trace in traces)])
        steps = once_each((trace.steps for trace in traces), _recorded_operators)
        parts = [place + start for place, start in zip(steps, starts[:-1], strict=True)]
        self._rows = np.concatenate(parts)
        self._counts = np.bincount(self._rows, minlength=int(starts[-1])).tolist()

    def of_recorded(self, values: Iterable[object]) -> Objects:
        """A value per recorded operator, repeated for each operator of the passes."""
        return _objects(values).take(self._rows)

    def of_pass(self, values: Iterable[Sequence[object]]) -> Objects:
        """Values per operator of each pass, one pass after the other."""
        return np.concatenate(once_each(values, _objects))

    def integers(self, values: Iterable[int | None]) -> "pd.api.extensions.ExtensionArray":
        """Integers per recorded operator, repeated, with NA for None."""
        each = list(values)
        total = sum((n or 0) * count for n, count in zip(each, self._counts, strict=True))
        return integers(each, total=total).take(self._rows)

    def integers_of_pass(
        self, values: Iterable[Sequence[int | None]]
    ) -> "pd.api.extensions.ExtensionArray":
        """Integers per operator of each pass, with NA for None."""
        return integers(chain.from_iterable(values))

    def floats(self, values: Iterable[float | None]) -> "pd.api.extensions.ExtensionArray":
        """Floats per recorded operator, repeated, with NA for None."""
        return floats(values).take(self._rows)

    def shapes(
        self, tensors_of: Callable[[Operator], tuple[int, ...]]
    ) -> Iterator[list[tuple[int, ...]]]:
        """The shapes of some tensors of each recorded operator."""
        for trace in self._traces:
            for operator in trace.recorded.operators:
                yield trace.recorded.shapes(tensors_of(operator))

    def dtypes(self) -> Iterator[str | None]:
        """The dtype of the first output of each recorded operator, or of its first input."""
        for trace in self._traces:
            for operator in trace.recorded.operators:
                tensors = operator.outputs or operator.inputs
                yield trace.recorded.tensors[tensors[0]].dtype if tensors else None


def once_each(items: Iterable[Item], make: Callable[[Item], Made]) -> list[Made]:
    """What is made of each item; the same object, as passes share them, is read once."""
    made: dict[int, tuple[Item, Made]] = {}
    found = []
    for item in items:
        known = made.get(id(item))
        if known is None:
            known = made[id(item)] = (item, make(item))
        found.append(known[1])
    return found


def _objects(values: Iterable[object]) -> Objects:
    each = list(values)
    return np.fromiter(each, dtype=object, count=len(each))


def _recorded_operators(steps: Sequence[tuple[int, Any]]) -> npt.NDArray[np.intp]:
    return np.fromiter((operator for operator, _ in steps), np.intp, len(steps))
