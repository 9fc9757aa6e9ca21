"""Compares two models on the same workload."""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import floats

Passes = Sequence[tuple[Trace, PassTime]]
Row = tuple[str, str, float | None, float | None]  # quantity, unit, first value, second value
_OTHERS = ("quantity", "unit", "ratio", "difference")  # columns that are not a model's
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
    """One row per quantity, index `quantity`: both models' values, their ratio and difference.

    Args:
        traces: the same workload of the first and of the second model.
        memories: the memory that each model needs per device, with the name of the runtime.
        passes: the passes of each model with their predicted times.

    Returns:
        A table whose `ratio` is the second value over the first and `difference` the second minus
        the first; a column for each model has its name. The unit of memory and of times
        names the runtime. Times of a pass that only one of the models has, or memory under
        different runtimes, are left out.
    """
    rows = [
        *_total_rows(traces),
        *_memory_rows(*memories),
        *_time_rows(*passes),
    ]
    quantities, units, first, second = zip(*rows, strict=True)
    names = _column_names([trace.model.name for trace in traces])
    pairs = list(zip(first, second, strict=True))
    table = pd.DataFrame(
        {
            "unit": units,
            names[0]: _cells(first),
            names[1]: _cells(second),
            "ratio": floats(b / a if a and b is not None else None for a, b in pairs),
            "difference": _cells([None if None in (a, b) else b - a for a, b in pairs]),
        }
    )
    return table.set_index(pd.Index(quantities, name="quantity"))


def _column_names(models: Sequence[str]) -> list[str]:
    """A name for the column of each model; a name that is taken gets a number."""
    names: list[str] = []
    for model in models:
        numbered = (f"{model} ({number})" for number in count(2))
        names.append(next(n for n in chain([model], numbered) if n not in (*_OTHERS, *names)))
    return names


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


def _cells(values: Sequence[float | None]) -> "pd.Series[Any]":
    """Values with NA for None; integers stay exact beside the floats of their column."""
    return pd.Series([pd.NA if value is None else value for value in values], dtype=object)
