"""Tables of several workloads of one model: totals, operators, and shapes side by side."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import or_
from types import MappingProxyType

import numpy as np
import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import Totals
from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.formulas.symbolic import Key, OperatorFormulas, recorded_operators
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.views import units
from llmsim_magic.views.tables.columns import floats, integers, texts
from llmsim_magic.views.tables.formulas import shapes_by_operator
from llmsim_magic.views.tables.operators import operator_columns

_WORKLOAD_COLUMNS = ("phase", "batch", "context")
_TOTAL_COLUMNS = (
    "operators",
    "flops",
    "elementwise_ops",
    "bytes_read",
    "bytes_written",
    "cache_bytes",
)


@defer_interrupt
def totals_table(
    passes: Mapping[Workload, Totals],
    failures: Sequence[tuple[Workload, str]] = (),
    peaks: Mapping[Workload, int] = MappingProxyType({}),
) -> pd.DataFrame:
    """One row per workload: operators, work, traffic and cache of the whole pass.

    Args:
        passes: the totals of each workload.
        failures: the workloads that could not be traced, each with the reason. The reason is in
            the column `error`, and the other cells of the row are NA.
        peaks: the peak bytes of each training step, in the column `peak_bytes`, which other phases
            do not have.
    """
    sums = list(passes.values())
    workloads = [*passes, *(workload for workload, _ in failures)]
    columns: dict[str, object] = {
        name: [getattr(workload, name) for workload in workloads] for name in _WORKLOAD_COLUMNS
    }
    missing = [None] * len(failures)
    for name in _TOTAL_COLUMNS:
        columns[name] = integers([*(getattr(of_pass, name) for of_pass in sums), *missing])
    if peaks:
        columns["peak_bytes"] = integers([*(peaks.get(workload) for workload in passes), *missing])
    columns["error"] = texts([*(None for _ in passes), *(reason for _, reason in failures)])
    return pd.DataFrame(columns)


def with_times(totals: pd.DataFrame, seconds: Mapping[Workload, float]) -> pd.DataFrame:
    """The table of totals with the time of each workload in seconds, NA where it is unknown."""
    known = {(each.phase, each.batch, each.context): time for each, time in seconds.items()}
    workloads = totals[list(_WORKLOAD_COLUMNS)].itertuples(index=False, name=None)
    return totals.assign(time_s=floats([known.get(workload) for workload in workloads]))


@defer_interrupt
def with_predictions(
    totals: pd.DataFrame, passes: Sequence[tuple[Trace, PassTime]]
) -> pd.DataFrame:
    """The table of totals with the time of each workload on a device.

    Args:
        totals: one row per workload.
        passes: the workloads with their times.

    Returns:
        The table with columns of the execution, of seconds with their band, and of the tokens per
        second that a pass reads; NA for a workload without a time.
    """
    known = {(w.phase, w.batch, w.context): each for each in passes for w in [each[0].workload]}
    keys = totals[list(_WORKLOAD_COLUMNS)].itertuples(index=False, name=None)
    rows = [known.get(key) for key in keys]
    times = [None if row is None else row[1] for row in rows]
    rates = [None if row is None else tokens_read(row[0]) / row[1].seconds for row in rows]
    executions = [None if time is None else time.execution for time in times]
    return totals.assign(
        runtime=pd.Series(texts([None if each is None else each.runtime for each in executions])),
        launch=pd.Series(texts([None if each is None else each.launch for each in executions])),
        time_s=floats([None if time is None else time.seconds for time in times]),
        time_low_s=floats([None if time is None else time.low for time in times]),
        time_high_s=floats([None if time is None else time.high for time in times]),
        tokens_per_s=floats(rates),
    )


@defer_interrupt
def sweep_ops_table(traces: Sequence[Trace]) -> pd.DataFrame:
    """The `ops_table` of every workload, concatenated, with `phase, batch, context` in front."""
    lengths = [len(trace.steps) for trace in traces]
    columns: dict[str, object] = {
        name: np.repeat(
            np.array([getattr(trace.workload, name) for trace in traces]), lengths
        ).tolist()
        for name in _WORKLOAD_COLUMNS
    }
    columns |= operator_columns(traces)
    columns["order"] = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame(columns)


@defer_interrupt
def shapes_table(
    traces: Sequence[Trace], formulas: Mapping[str, Sequence[OperatorFormulas]]
) -> pd.DataFrame:
    """One row per operator, one column per workload with `input shapes → output shapes`.

    Rows of different workloads are matched by path, operator type and number of the call.

    Args:
        traces: the workloads.
        formulas: for each phase, the shapes of its operators as formulas.

    Returns:
        A table in which a workload's cell is NA if the workload does not run the operator.
        `symbolic` gives the shapes as formulas of the batch B and of the context, S tokens read
        or C tokens cached; NA if no formula holds for every workload. `changes` is True if the
        shapes depend on the workload.
    """
    operators = [recorded_operators(trace) for trace in traces]
    rows = dict.fromkeys(chain.from_iterable({id(each): each for each in operators}.values()))
    columns: dict[str, list[str | None]] = {}
    for trace, own in zip(traces, operators, strict=True):
        shapes = _shape_texts(trace)
        columns[_workload_label(trace.workload)] = [
            shapes[own[key]] if key in own else None for key in rows
        ]
    table = pd.DataFrame(list(rows), columns=["path", "op", "call"])
    if any(trace.training is not None for trace in traces):
        found = [_parts(trace, own) for trace, own in zip(traces, operators, strict=True)]
        of_rows = reduce(or_, reversed(found))
        table.insert(2, "pass", [of_rows[key] for key in rows])
    symbolic = shapes_by_operator(formulas)
    each = {label: pd.Series(texts(column)) for label, column in columns.items()}
    each["symbolic"] = pd.Series(texts(symbolic.get(key) for key in rows), dtype=object)
    each["changes"] = pd.Series([len(set(row)) > 1 for row in zip(*columns.values(), strict=True)])
    return pd.concat([table, pd.DataFrame(each)], axis=1)


def _parts(trace: Trace, operators: Mapping[Key, int]) -> dict[Key, Pass]:
    """The pass of each operator of a training step, by its key."""
    of_recorded = trace.recorded.operators
    return {key: of_recorded[place].part for key, place in operators.items()}


def _shape_texts(trace: Trace) -> list[str]:
    """`input shapes → output shapes` of every recorded operator."""
    record = trace.recorded
    return [
        " → ".join(units.shapes(record.shapes(each)) for each in (o.inputs, o.outputs))
        for o in record.operators
    ]


def _workload_label(workload: Workload) -> str:
    """`decode 16×128`: phase, batch × context."""
    if workload.phase == "forward":
        return "forward"
    return f"{workload.phase} {workload.batch}×{workload.context}"
