"""Where the work is: FLOPs and bytes by type of operator."""

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import recorded_costs
from llmsim_magic.analyses.time.latency import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.time_tables import type_times

_SUMS = ("calls", "flops", "elementwise_ops", "bytes_read", "bytes_written")


@defer_interrupt
def costs_table(trace: Trace, time: PassTime | None = None) -> pd.DataFrame:
    """One row per type of operator, index `op`, most FLOPs first.

    `calls` counts operators; FLOPs, operations and bytes are summed over them; `flops_share` and
    `bytes_share` are fractions of the pass; `arithmetic_intensity` is FLOPs per byte, NA where a
    type moves none. Given the time of the pass, `time_s` with its band, `time_share` and `binds`
    stand beside them.
    """
    sums: dict[str, dict[str, int]] = {}
    for order, (operator, cost) in enumerate(
        zip(trace.recorded.operators, recorded_costs(trace), strict=True)
    ):
        of_type = sums.setdefault(operator.op, dict.fromkeys(_SUMS, 0))
        each = (1, cost.flops or 0, cost.elementwise_ops or 0, cost.bytes_read, cost.bytes_written)
        for name, value in zip(_SUMS, each, strict=True):
            of_type[name] += value * trace.run_counts[order]
    table = pd.DataFrame.from_dict(sums, orient="index", columns=list(_SUMS))
    table.index.name = "op"
    moved = table["bytes_read"] + table["bytes_written"]
    table["flops_share"] = _share(table["flops"])
    table["bytes_share"] = _share(moved)
    table["arithmetic_intensity"] = (table["flops"] / moved).where(moved > 0).astype("Float64")
    if time is not None:
        table = table.join(type_times(trace, time))
    return table.sort_values(["flops", "bytes_read", "calls"], ascending=False)


def _share(column: "pd.Series[int]") -> "pd.Series[float]":
    return (column / max(int(column.sum()), 1)).astype("Float64")
