"""Tables of predicted times: seconds, each with the ends of its band beside it.

Nine of ten measurements lie between `time_low_s` and `time_high_s`. The times of parts sum to the
time of their pass; the band of the pass may be wider than the sum of its operators' bands.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline import Estimate
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import floats, integers
from llmsim_magic.views.tables.engine_costs import with_engine_costs
from llmsim_magic.views.tables.operators import ops_table
from llmsim_magic.views.tables.step_times import pass_columns, step_columns

# Column of `times_table` → attribute of an operator's time.
_OPERATOR_COLUMNS = {
    "flops": "flops",
    "bytes": "bytes",
    "arithmetic_intensity": "intensity",
    "of_peak": "of_peak",
    "of_bandwidth": "of_bandwidth",
}


@defer_interrupt
def latency_table(
    passes: Iterable[tuple[Trace, PassTime]], fits: Iterable[bool | None]
) -> pd.DataFrame:
    """One row per pass on a device under an execution: its time, tokens/s, and bottleneck.

    Args:
        passes: the passes with their times.
        fits: for each pass, whether the device holds it; None if its memory is unknown.

    Returns:
        A table whose tokens per second count the tokens that a pass reads: one per sequence in
        decode, and those of the whole group for ranks that share a model. Training steps have
        the seconds of each pass and the MFU: model FLOPs, without what is computed again, over
        dense peak × time. `binds` names what limits most of the time, with its share. `measured`
        is True if this device was measured, and False if its constants come from similar devices.
        The time of a pass that does not fit (`fits` is False) is hypothetical.
    """
    rows = list(passes)
    workloads = [trace.workload for trace, _ in rows]
    times = [time for _, time in rows]
    tokens = [tokens_read(trace) for trace, _ in rows]
    columns: dict[str, object] = {
        "device": _strings([time.accelerator.name for time in times]),
        "runtime": _strings([time.execution.runtime for time in times]),
        "launch": _strings([time.execution.launch for time in times]),
        "phase": _strings([workload.phase for workload in workloads]),
        "batch": integers([workload.batch for workload in workloads]),
        "context": integers([workload.context or None for workload in workloads]),
        "time_s": floats([time.seconds for time in times]),
        "time_low_s": floats([time.low for time in times]),
        "time_high_s": floats([time.high for time in times]),
    }
    for suffix, attribute in (("", "seconds"), ("_low", "high"), ("_high", "low")):
        columns[f"tokens_per_s{suffix}"] = floats(
            [_rate(n, getattr(time, attribute)) for n, time in zip(tokens, times, strict=True)]
        )
    columns |= step_columns(rows)
    columns["binds"] = _strings([main_bottleneck(time) for time in times])
    columns["measured"] = pd.array([time.seen for time in times], dtype="boolean")
    columns["fits"] = pd.array(list(fits), dtype="boolean")
    return pd.DataFrame(columns)


@defer_interrupt
def times_table(trace: Trace, times: Sequence[PassTime]) -> pd.DataFrame:
    """One row per operator and execution, index `order`; NA for an operator without kernels.

    Args:
        trace: the pass.
        times: its time under each execution, whose rows follow one after the other.

    Returns:
        A table whose `class` is the kernel class that the prediction is calibrated on. `flops`
        and `bytes` are those of the operator's kernels, `of_peak` and `of_bandwidth` the
        fractions of the device's peak that they reach, and `share` the fraction of the pass.
    """
    tables = [_operator_times(trace, time) for time in times]
    return tables[0] if len(tables) == 1 else pd.concat(tables)


@defer_interrupt
def timed_operators_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """The `ops_table` with the time of each operator, its share of the pass and its bottleneck.

    Of an engine, FLOPs and bytes are those of its kernels, as in `with_engine_costs`.
    """
    operators = time.operators
    estimates = [Estimate(each.seconds, each.low, each.high, each.binds) for each in operators]
    columns: dict[str, Any] = _estimate_columns(estimates, time, "time_share")
    table = with_engine_costs(ops_table(trace), [[order] for order in range(len(operators))], time)
    return table.assign(**columns)


def _operator_times(trace: Trace, time: PassTime) -> pd.DataFrame:
    operators = time.operators
    estimates = [Estimate(each.seconds, each.low, each.high, each.binds) for each in operators]
    columns: dict[str, object] = {
        "path": list(trace.paths),
        "op": trace.expand_replays([operator.op for operator in trace.recorded.operators]),
        **_part_column(trace),
        "runtime": _strings([time.execution.runtime] * len(operators)),
        "launch": _strings([time.execution.launch] * len(operators)),
        "class": _strings([operator.kind for operator in operators]),
        **_estimate_columns(estimates, time, "share"),
    }
    for column, attribute in _OPERATOR_COLUMNS.items():
        columns[column] = floats(
            [
                getattr(operator, attribute) if operator.kernels > 0 else None
                for operator in operators
            ]
        )
    return pd.DataFrame(columns, index=pd.RangeIndex(len(operators), name="order"))


def _part_column(trace: Trace) -> dict[str, object]:
    """The pass of a training step that runs each operator; none for a pass of inference."""
    if trace.training is None:
        return {}
    parts = [operator.part for operator in trace.recorded.operators]
    return {"pass": _strings(trace.expand_replays(parts))}


def orders_by_type(trace: Trace) -> dict[str, list[int]]:
    """The operators of each type, by their order in the pass."""
    orders: dict[str, list[int]] = {}
    ops = trace.expand_replays([operator.op for operator in trace.recorded.operators])
    for order, op in enumerate(ops):
        orders.setdefault(op, []).append(order)
    return orders


def orders_by_layer(trace: Trace) -> dict[Layer | None, list[int]]:
    """The operators of each layer in execution order; those outside all layers come last."""
    orders: dict[Layer | None, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        orders.setdefault(layer, []).append(order)
    outside = orders.pop(None, None)
    return orders if outside is None else {**orders, None: outside}


@defer_interrupt
def layer_times_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per layer in execution order; a last row without a path is for all others."""
    orders = orders_by_layer(trace)
    rows = list(orders)
    columns: dict[str, object] = {
        "path": _strings([None if layer is None else layer.path for layer in rows]),
        "layer": integers([None if layer is None else layer.index for layer in rows]),
        "operators": integers([len(orders[layer]) for layer in rows]),
        **_estimate_columns([time.of(orders[layer]) for layer in rows], time, "share"),
        **pass_columns(trace, time, orders.values()),
    }
    return pd.DataFrame(columns)


@defer_interrupt
def type_times_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per operator type, index `op`: its total time, share of the pass and bottleneck."""
    orders = orders_by_type(trace)
    estimates = [time.of(of_type) for of_type in orders.values()]
    index = pd.Index(list(orders), name="op", dtype=object)
    columns = _estimate_columns(estimates, time, "time_share")
    return pd.DataFrame(columns | pass_columns(trace, time, orders.values()), index=index)


def phase_columns(trace: Trace, times: Sequence[PassTime | None]) -> dict[str, Any]:
    """Columns of one pass on several devices, named by its phase: `decode_s` and so on.

    Args:
        trace: the pass.
        times: its time on each device; None, which gives NA, for a device that cannot run it.
    """
    phase, tokens = trace.workload.phase, tokens_read(trace)

    def column(value: Callable[[PassTime], float | None]) -> "pd.api.extensions.ExtensionArray":
        return floats([None if time is None else value(time) for time in times])

    return {
        f"{phase}_s": column(lambda time: time.seconds),
        f"{phase}_low_s": column(lambda time: time.low),
        f"{phase}_high_s": column(lambda time: time.high),
        f"{phase}_tokens_per_s": column(lambda time: _rate(tokens, time.seconds)),
        f"{phase}_tokens_per_s_low": column(lambda time: _rate(tokens, time.high)),
        f"{phase}_tokens_per_s_high": column(lambda time: _rate(tokens, time.low)),
        f"{phase}_binds": _strings(
            [None if time is None else main_bottleneck(time) for time in times]
        ),
    }


def _estimate_columns(
    estimates: Sequence[Estimate], time: PassTime, share: str
) -> dict[str, object]:
    """Seconds with their band, their fraction of the pass, and the bottleneck; NA for 0 s."""
    rows = [estimate if estimate.seconds else None for estimate in estimates]
    return {
        "time_s": floats([row.seconds if row else None for row in rows]),
        "time_low_s": floats([row.low if row else None for row in rows]),
        "time_high_s": floats([row.high if row else None for row in rows]),
        share: floats([row.seconds / time.seconds if row else None for row in rows]),
        "binds": _strings([row.binds if row else None for row in rows]),
    }


def _strings(values: Iterable[str | None]) -> "pd.api.extensions.ExtensionArray":
    return pd.array(list(values), dtype="string")


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds else None


def main_bottleneck(time: PassTime) -> str | None:
    """`memory 97 %`: what limits most of the time, and its share."""
    return next((f"{name} {100 * share:.0f} %" for name, share in time.bound.items()), None)
