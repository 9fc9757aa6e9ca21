"""Times as DataFrames: raw seconds, each with the ends of its band beside it.

In nine of ten cases a measurement lies from `time_low_s` to `time_high_s`. Parts sum to the time
of their pass; its own band may be wider than what its operators' bands sum to.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.analyses.time.latency import PassTime
from llmsim_magic.analyses.time.roofline import Estimate
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.columns import integers, numbers

_OF_DEVICE = ("of_peak", "of_bandwidth")


@defer_interrupt
def latency_table(rows: Iterable[tuple[Trace, PassTime]]) -> pd.DataFrame:
    """One row per pass on a device: its time, tokens per second, and what binds most of the time.

    Tokens are what the pass reads: one for each sequence in decode; of ranks that share a model,
    those of the group. `measured` says whether the device was, or its relatives speak for it.
    """
    each = list(rows)
    workloads = [trace.workload for trace, _ in each]
    times = [time for _, time in each]
    tokens = [tokens_read(trace) for trace, _ in each]
    columns: dict[str, object] = {
        "device": _words([time.accelerator.name for time in times]),
        "phase": _words([workload.phase for workload in workloads]),
        "batch": integers([workload.batch for workload in workloads]),
        "context": integers([workload.context or None for workload in workloads]),
        "launch": _words([time.regime for time in times]),
        "time_s": numbers([time.seconds for time in times]),
        "time_low_s": numbers([time.low for time in times]),
        "time_high_s": numbers([time.high for time in times]),
    }
    for name, of in (("", "seconds"), ("_low", "high"), ("_high", "low")):
        rates = [_per(n, getattr(time, of)) for n, time in zip(tokens, times, strict=True)]
        columns[f"tokens_per_s{name}"] = numbers(rates)
    columns["binds"] = _words([_most(time) for time in times])
    columns["measured"] = pd.array([time.seen for time in times], dtype="boolean")
    return pd.DataFrame(columns)


@defer_interrupt
def times_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per operator, index `order`; NA where no kernel runs.

    `class` is whose calibration tells; `flops` and `bytes` are its kernels' own; `of_peak` and
    `of_bandwidth` the shares of the device's that they reach, `share` that of the pass's time.
    """
    found = time.operators
    ran = [each.kernels > 0 for each in found]
    spent = [Estimate(each.seconds, each.low, each.high, each.binds) for each in found]
    columns: dict[str, object] = {
        "path": list(trace.paths),
        "op": trace.expand_replays([operator.op for operator in trace.recorded.operators]),
        "class": _words([each.kind for each in found]),
        **_columns(spent, time, "share"),
    }
    work = {"flops": "flops", "bytes": "bytes", "arithmetic_intensity": "intensity"}
    for name, attribute in (work | {name: name for name in _OF_DEVICE}).items():
        values = [
            getattr(each, attribute) if runs else None
            for each, runs in zip(found, ran, strict=True)
        ]
        columns[name] = numbers(values)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(found), name="order"))


@defer_interrupt
def layer_times_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per layer in the order they run; the last, without a path, is all outside them."""
    orders: dict[Layer | None, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        orders.setdefault(layer, []).append(order)
    inside = [layer for layer in orders if layer is not None]
    each = [*inside, None] if None in orders else inside
    columns: dict[str, object] = {
        "path": _words([None if layer is None else layer.path for layer in each]),
        "layer": integers([None if layer is None else layer.index for layer in each]),
        "operators": integers([len(orders[layer]) for layer in each]),
        **_columns([time.of(orders[layer]) for layer in each], time, "share"),
    }
    return pd.DataFrame(columns)


@defer_interrupt
def type_times(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per type of operator, index `op`: the time of all of them, its share, what binds."""
    orders: dict[str, list[int]] = {}
    ops = trace.expand_replays([operator.op for operator in trace.recorded.operators])
    for order, op in enumerate(ops):
        orders.setdefault(op, []).append(order)
    spent = [time.of(places) for places in orders.values()]
    index = pd.Index(list(orders), name="op", dtype=object)
    return pd.DataFrame(_columns(spent, time, "time_share"), index=index)


def time_columns(trace: Trace, found: Sequence[PassTime | None]) -> dict[str, Any]:
    """Columns of one pass on many devices, named by its phase; NA where it does not run."""
    phase, tokens = trace.workload.phase, tokens_read(trace)

    def column(value: Callable[[PassTime], float | None]) -> "pd.api.extensions.ExtensionArray":
        return numbers([None if time is None else value(time) for time in found])

    return {
        f"{phase}_s": column(lambda time: time.seconds),
        f"{phase}_low_s": column(lambda time: time.low),
        f"{phase}_high_s": column(lambda time: time.high),
        f"{phase}_tokens_per_s": column(lambda time: _per(tokens, time.seconds)),
        f"{phase}_tokens_per_s_low": column(lambda time: _per(tokens, time.high)),
        f"{phase}_tokens_per_s_high": column(lambda time: _per(tokens, time.low)),
        f"{phase}_binds": _words([None if time is None else _most(time) for time in found]),
    }


def _columns(spent: Sequence[Estimate], time: PassTime, share: str) -> dict[str, object]:
    """Seconds with their band, their share of the pass, what binds; NA where nothing is spent."""
    runs = [each if each.seconds else None for each in spent]
    return {
        "time_s": numbers([each.seconds if each else None for each in runs]),
        "time_low_s": numbers([each.low if each else None for each in runs]),
        "time_high_s": numbers([each.high if each else None for each in runs]),
        share: numbers([each.seconds / time.seconds if each else None for each in runs]),
        "binds": _words([each.binds if each else None for each in runs]),
    }


def _words(values: Iterable[str | None]) -> "pd.api.extensions.ExtensionArray":
    return pd.array(list(values), dtype="string")


def _per(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds else None


def _most(time: PassTime) -> str | None:
    """`memory 97 %`: what binds most of the time, and how much of it."""
    return next((f"{name} {100 * share:.0f} %" for name, share in time.bound.items()), None)
