"""Compares two models on the same workload."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.trace import Trace

Passes = Sequence[tuple[Trace, PassTime]]
Row = tuple[str, str, float | None, float | None]  # quantity, unit, first value, second value
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
    traces: tuple[Trace, Trace],
    memories: tuple[tuple[str, Memory], tuple[str, Memory]],
    passes: tuple[Passes, Passes],
) -> pd.DataFrame:
    """One row per quantity, index `quantity`: the values of both models and their ratio.

    Args:
        traces: the same workload of the first and of the second model.
        memories: the memory that each model needs per device, with the name of the runtime.
        passes: the passes of each model with their predicted times.

    Returns:
        A table whose `ratio` is the second value over the first. The unit of memory and of times
        names the runtime. Times of a pass that only one of the models has, or memory under
        different runtimes, are left out.
    """
    rows = [
        *_total_rows(traces),
        *_memory_rows(*memories),
        *_time_rows(*passes),
    ]
    quantities, units, first, second = zip(*rows, strict=True)
    names = [trace.model.name for trace in traces]
    if names[0] == names[1]:
        names[1] = f"{names[1]} (2)"
    table = pd.DataFrame(
        {"unit": units, names[0]: _cells(first), names[1]: _cells(second)},
        index=pd.Index(quantities, name="quantity"),
    )
    table["ratio"] = pd.array(
        [b / a if a and b is not None else pd.NA for a, b in zip(first, second, strict=True)],
        dtype="Float64",
    )
    return table


def _total_rows(traces: tuple[Trace, Trace]) -> list[Row]:
    first, second = (totals(trace) for trace in traces)
    rows: list[Row] = []
    for name, unit in _TOTALS.items():
        field = "active" if name == "parameters_active" else name
        rows.append((name, unit, getattr(first, field), getattr(second, field)))
    return rows


def _memory_rows(first: tuple[str, Memory], second: tuple[str, Memory]) -> list[Row]:
    runtime, memory = first
    if second[0] != runtime:
        return []
    return [("memory_bytes", f"bytes, {RUNTIMES[runtime]}", memory.total, second[1].total)]


def _time_rows(first: Passes, second: Passes) -> list[Row]:
    """Seconds, and the ends of their bands, of each pass that both models have."""
    other_times = {(_pass_name(trace, time), time.execution): time for trace, time in second}
    rows: list[Row] = []
    for trace, time in first:
        name = _pass_name(trace, time)
        other = other_times.get((name, time.execution))
        if other is not None:
            for part in ("seconds", "low", "high"):
                suffix = "" if part == "seconds" else f".{part}"
                values = (getattr(time, part), getattr(other, part))
                rows.append((f"{name}{suffix}", f"s, {time.execution}", *values))
    return rows


def _pass_name(trace: Trace, time: PassTime) -> str:
    return f"{trace.workload.phase}_s on {time.accelerator.name}"


def _cells(values: Sequence[float | None]) -> list[Any]:
    """Values with NA for None; a list keeps integers exact in a column that also has floats."""
    return [pd.NA if value is None else value for value in values]
