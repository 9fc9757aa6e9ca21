"""Two models side by side."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.time.latency import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace

Passes = Sequence[tuple[Trace, PassTime]]
_TOTALS = {
    "parameters": "parameters",
    "parameters_active": "parameters",
    "parameter_bytes": "bytes",
    "cache_bytes": "bytes",
    "flops": "FLOPs",
    "bytes_read": "bytes",
    "bytes_written": "bytes",
    "arithmetic_intensity": "FLOPs/byte",
}


@defer_interrupt
def comparison_table(
    traces: tuple[Trace, Trace], memories: tuple[Memory, Memory], passes: tuple[Passes, Passes]
) -> pd.DataFrame:
    """One row per quantity of the same workload, index `quantity`: both values, and their ratio.

    `ratio` is the second model's value over the first's. Times of a pass that only one of them has
    are left out.
    """
    rows: list[tuple[Any, ...]] = []
    both = tuple(totals(trace) for trace in traces)
    for name, unit in _TOTALS.items():
        field = "active" if name == "parameters_active" else name
        rows.append((name, unit, *(getattr(sums, field) for sums in both)))
    rows.append(("memory_bytes", "bytes", *(memory.total for memory in memories)))
    there = {_named(trace, time): time for trace, time in passes[1]}
    for trace, one in passes[0]:
        other = there.get(_named(trace, one))
        if other is not None:
            name = _named(trace, one)
            for part in ("seconds", "low", "high"):
                suffix = "" if part == "seconds" else f".{part}"
                rows.append((f"{name}{suffix}", "s", getattr(one, part), getattr(other, part)))
    names, units, ones, others = zip(*rows, strict=True)
    columns = [trace.model.name for trace in traces]
    if columns[0] == columns[1]:
        columns[1] = f"{columns[1]} (2)"
    table = pd.DataFrame(
        {"unit": units, columns[0]: _cells(ones), columns[1]: _cells(others)},
        index=pd.Index(names, name="quantity"),
    )
    table["ratio"] = pd.array(
        [b / a if a and b is not None else pd.NA for a, b in zip(ones, others, strict=True)],
        dtype="Float64",
    )
    return table


def _named(trace: Trace, time: PassTime) -> str:
    return f"{trace.workload.phase}_s on {time.accelerator.name}"


def _cells(values: Sequence[float | None]) -> list[object]:
    """Whole numbers stay whole beside fractions."""
    return [pd.NA if value is None else value for value in values]
