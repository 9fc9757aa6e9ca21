"""Heat maps of many workloads: a quantity over batch and context, one map for each phase."""

from collections.abc import Iterator, Mapping

from llmsim_magic.analyses.cost.operator_costs import Totals
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import HeatCell, HeatMap


def workload_maps(
    passes: Mapping[Workload, Totals], seconds: Mapping[Workload, float] | None = None
) -> Iterator[HeatMap]:
    """FLOPs, bytes moved, cache and time of each phase, over batch and context.

    Args:
        passes: the totals of each workload.
        seconds: the time of each workload on a device; None without one.
    """
    for phase in dict.fromkeys(workload.phase for workload in passes):
        of_phase = {workload: each for workload, each in passes.items() if workload.phase == phase}
        yield _map(f"FLOPs of {phase}", "FLOPs", {w: each.flops for w, each in of_phase.items()})
        moved = {w: each.bytes_read + each.bytes_written for w, each in of_phase.items()}
        yield _map(f"Bytes moved by {phase}", "B", moved)
        cache = {w: each.cache_bytes for w, each in of_phase.items()}
        if any(cache.values()) and phase != "decode":  # there it is one token longer
            yield _map(f"Cache after {phase}", "B", cache)
        times = {w: seconds[w] for w in of_phase if w in seconds} if seconds else {}
        if times:
            yield _map(f"Time of {phase}", "s", times)


def _map(title: str, unit: str, values: Mapping[Workload, float]) -> HeatMap:
    batches = sorted({workload.batch for workload in values})
    contexts = sorted({workload.context for workload in values})
    by_size = {(workload.batch, workload.context): value for workload, value in values.items()}
    return HeatMap(
        title,
        "batch",
        tuple(map(units.count, batches)),
        "context",
        tuple(map(units.count, contexts)),
        tuple(
            tuple(_cell(by_size.get((batch, context)), unit) for context in contexts)
            for batch in batches
        ),
    )


def _cell(value: float | None, unit: str) -> HeatCell:
    if value is None:
        return HeatCell(None, "")
    if unit == "s":
        return HeatCell(value, units.seconds(value), f"{value:.6g} s")
    text = units.nbytes(value) if unit == "B" else units.rate(value)
    return HeatCell(value, text, f"{value:,} {unit}")
