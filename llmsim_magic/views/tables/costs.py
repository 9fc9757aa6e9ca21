"""Costs by operator type: calls, FLOPs, bytes and, on a device, time."""

import pandas as pd

from llmsim_magic.analyses.cost.operator_costs import recorded_costs
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.engine_costs import with_engine_costs
from llmsim_magic.views.tables.times import orders_by_type, type_times_table

_SUMS = ("calls", "flops", "elementwise_ops", "bytes_read", "bytes_written")


@defer_interrupt
def costs_table(trace: Trace, time: PassTime | None = None) -> pd.DataFrame:
    """One row per operator type, index `op`, most FLOPs first.

    Args:
        trace: the pass.
        time: the time of the pass on a device, which adds the columns of `type_times_table`. Of an
            engine, FLOPs and bytes are those of its kernels, as in `with_engine_costs`.

    Returns:
        A table of sums over the operators of a type. `flops_share` and `bytes_share` are
        fractions of the pass; `arithmetic_intensity` is FLOPs per byte, NA for a type that moves
        no bytes.
    """
    sums: dict[str, dict[str, int]] = {}
    costs = recorded_costs(trace)
    for order, (operator, cost) in enumerate(zip(trace.recorded.operators, costs, strict=True)):
        of_type = sums.setdefault(operator.op, dict.fromkeys(_SUMS, 0))
        flops, elementwise_ops = cost.flops or 0, cost.elementwise_ops or 0
        values = (1, flops, elementwise_ops, cost.bytes_read, cost.bytes_written)
        for name, value in zip(_SUMS, values, strict=True):
            of_type[name] += value * trace.run_counts[order]
    table = pd.DataFrame.from_dict(sums, orient="index", columns=list(_SUMS))
    table.index.name = "op"
    bytes_moved = table["bytes_read"] + table["bytes_written"]
    table["flops_share"] = _share(table["flops"])
    table["bytes_share"] = _share(bytes_moved)
    intensity = (table["flops"] / bytes_moved).where(bytes_moved > 0)
    table["arithmetic_intensity"] = intensity.astype("Float64")
    if time is not None:
        orders = orders_by_type(trace)
        table = with_engine_costs(table, [orders[op] for op in table.index], time)
        table = table.join(type_times_table(trace, time))
    moved = "bytes" if "bytes" in table else "bytes_read"
    return table.sort_values(["flops", moved, "calls"], ascending=False)


def _share(column: "pd.Series[int]") -> "pd.Series[float]":
    return (column / max(int(column.sum()), 1)).astype("Float64")
