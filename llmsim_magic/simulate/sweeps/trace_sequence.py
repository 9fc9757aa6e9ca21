"""The traces of a sweep, made from formulas when they are read."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import overload
from weakref import WeakValueDictionary

from llmsim_magic.analyses.cost.operator_costs import TOTALS, Totals, totals
from llmsim_magic.analyses.formulas.region_analyses import FEW_NUMERIC
from llmsim_magic.analyses.formulas.symbolic_trace import Region
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

MAX_KEPT = 256  # evaluated traces of a sweep, with what was computed from them


@dataclass(frozen=True, slots=True)
class Evaluable:
    """A workload at which the formulas of a region give the trace."""

    region: Region
    workload: Workload

    def evaluate(self) -> Trace:
        trace = self.region.evaluate(self.workload.batch, self.workload.context)
        assert trace is not None  # noqa: S101 - checked before it became evaluable
        return trace


class TraceSequence(Sequence[Trace]):
    """Traces, some of which are evaluated when they are read.

    A trace that is still in use somewhere is the same object when it is read again.

    Args:
        entries: a trace of each workload, or formulas for it.
    """

    def __init__(self, entries: Iterable[Trace | Evaluable] = ()) -> None:
        self._entries = tuple(entries)
        self._kept: OrderedDict[int, Trace] = OrderedDict()
        self._in_use: WeakValueDictionary[int, Trace] = WeakValueDictionary()
        self._lock = RLock()

    @property
    def entries(self) -> tuple[Trace | Evaluable, ...]:
        return self._entries

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The workload of each trace; evaluates nothing."""
        return tuple(entry.workload for entry in self._entries)

    def representatives(self) -> list[Trace]:
        """Every traced pass, and the first and the last evaluated one of each region."""
        ends: dict[int, list[int]] = {}
        for index, entry in enumerate(self._entries):
            if isinstance(entry, Evaluable):
                ends.setdefault(id(entry.region), []).append(index)
        chosen = {index for indices in ends.values() for index in (indices[0], indices[-1])}
        return [
            self[index]
            for index, entry in enumerate(self._entries)
            if index in chosen or not isinstance(entry, Evaluable)
        ]

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Trace: ...

    @overload
    def __getitem__(self, index: slice) -> "TraceSequence": ...

    def __getitem__(self, index: int | slice) -> "Trace | TraceSequence":
        if isinstance(index, slice):
            return TraceSequence(self._entries[index])
        place = range(len(self._entries))[index]
        entry = self._entries[place]
        return self._evaluated(place, entry) if isinstance(entry, Evaluable) else entry

    def _evaluated(self, place: int, entry: Evaluable) -> Trace:
        with self._lock:
            trace = self._in_use.get(place)
            if trace is None:
                trace = self._in_use[place] = entry.evaluate()
            self._kept[place] = trace
            self._kept.move_to_end(place)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return trace

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (tuple, TraceSequence)):
            return len(self) == len(other) and all(map(Trace.__eq__, self, other))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.workloads)

    def __repr__(self) -> str:
        return f"TraceSequence of {len(self)} workloads"

    def __reduce__(self) -> tuple[type["TraceSequence"], tuple[tuple[Trace, ...]]]:
        return TraceSequence, (tuple(self),)


def totals_by_workload(traces: Sequence[Trace]) -> dict[Workload, Totals]:
    """The totals of each pass; by formulas where they hold, without a trace."""
    if not isinstance(traces, TraceSequence):
        return {trace.workload: totals(trace) for trace in traces}
    each = Counter(id(entry.region) for entry in traces.entries if isinstance(entry, Evaluable))
    found = {}
    for index, entry in enumerate(traces.entries):
        known = None
        if isinstance(entry, Evaluable) and each[id(entry.region)] > FEW_NUMERIC:
            point = entry.workload.batch, entry.workload.context
            known = entry.region.analyses.numeric_at(TOTALS, point)
        found[entry.workload] = totals(traces[index]) if known is None else known
    return found
