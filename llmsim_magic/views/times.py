"""Times of a pass as DataFrames and a sentence: seconds, each with its band."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from llmsim_magic.analyses.latency import NOT_MODELLED, PassTime
from llmsim_magic.analyses.layers import layers
from llmsim_magic.records.trace import Trace
from llmsim_magic.views.columns import numbers, texts

_SHARES = ("of_peak", "of_bandwidth")


def times_table(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per operator, index `order`: `time_s` with `low_s` and `high_s`, and what binds.

    `kernel_class` is the class whose calibration tells; `intensity` FLOPs per byte; `of_peak` and
    `of_bandwidth` the shares of the device's that are reached.
    """
    found = time.operators
    columns: dict[str, object] = {
        "path": list(trace.paths),
        "op": trace.of_each([operator.op for operator in trace.recorded.operators]),
        "kernel_class": pd.array([each.kind for each in found], dtype="string"),
        "kernels": [each.kernels for each in found],
        "time_s": [each.seconds for each in found],
        "low_s": [each.low for each in found],
        "high_s": [each.high for each in found],
        "binds": [each.binds for each in found],
        "intensity": pd.array([each.intensity for each in found], dtype="Float64"),
        **{name: [getattr(each, name) for each in found] for name in _SHARES},
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(len(found), name="order"))


def layer_times(trace: Trace, time: PassTime) -> pd.DataFrame:
    """One row per layer, and one, the path '', for what lies outside all: seconds with bands."""
    orders: dict[str, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        orders.setdefault("" if layer is None else layer.path, []).append(order)
    sums = {path: time.of(places) for path, places in orders.items()}
    return pd.DataFrame(
        {
            "operators": [len(places) for places in orders.values()],
            "time_s": [each.seconds for each in sums.values()],
            "low_s": [each.low for each in sums.values()],
            "high_s": [each.high for each in sums.values()],
            "binds": [each.binds for each in sums.values()],
        },
        index=pd.Index(sums, name="path", dtype=object),
    )


def passes_table(passes: Sequence[tuple[Trace, PassTime]]) -> pd.DataFrame:
    """One row per pass and device: its time, tokens per second, and what binds most of it."""
    rows = []
    for trace, time in passes:
        workload, tokens = trace.workload, _tokens(trace)
        rows.append(
            {
                "hardware": time.accelerator.name,
                "phase": workload.phase,
                "batch": workload.batch,
                "context": workload.context or pd.NA,
                "started": time.regime,
                "time_s": time.seconds,
                "low_s": time.low,
                "high_s": time.high,
                "tokens_per_s": tokens / time.seconds,
                "low_tokens_per_s": tokens / time.high,
                "high_tokens_per_s": tokens / time.low,
                "binds": next(iter(time.bound)),
                "measured": time.seen,
            }
        )
    return pd.DataFrame(rows)


def time_columns(trace: Trace, found: Sequence[PassTime | None]) -> dict[str, Any]:
    """Columns of one pass on many devices, named by its phase; NA where it does not run."""
    phase, tokens = trace.workload.phase, _tokens(trace)

    def column(value: Callable[[PassTime], float]) -> "pd.api.extensions.ExtensionArray":
        return numbers([None if time is None else value(time) for time in found])

    return {
        f"{phase}_s": column(lambda time: time.seconds),
        f"{phase}_low_s": column(lambda time: time.low),
        f"{phase}_high_s": column(lambda time: time.high),
        f"{phase}_tokens_per_s": column(lambda time: tokens / time.seconds),
        f"{phase}_low_tokens_per_s": column(lambda time: tokens / time.high),
        f"{phase}_high_tokens_per_s": column(lambda time: tokens / time.low),
        f"{phase}_binds": texts(
            [None if time is None else next(iter(time.bound)) for time in found]
        ),
    }


def _tokens(trace: Trace) -> int:
    """What a pass reads: all of the context, or one more token of each sequence."""
    workload = trace.workload
    return workload.batch * (1 if workload.phase == "decode" else workload.context or 1)


def caveat(time: PassTime) -> str:
    """How far to trust it, in a sentence."""
    seen = "measured itself" if time.seen else "never measured: its nearest relatives speak for it"
    return (
        f"{time.accelerator.name} was {seen}; nine of ten measurements lie in the band; "
        f"{NOT_MODELLED}"
    )
