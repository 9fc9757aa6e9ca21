"""The chart of times: each pass on each device with its 90 % interval."""

from collections.abc import Iterable

from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Bar, BarChart, Piece

_MOST_BARS = 8


def time_charts(
    passes: Iterable[tuple[Trace, PassTime]], fits: Iterable[bool | None]
) -> tuple[BarChart, ...]:
    """A chart for each workload, fastest first; what does not fit comes last, and is grey.

    Args:
        passes: the passes with their times.
        fits: for each, whether the device holds it; None if its memory is unknown.
    """
    by_workload: dict[str, list[tuple[PassTime, bool]]] = {}
    for (trace, time), fit in zip(passes, fits, strict=True):
        by_workload.setdefault(str(trace.workload), []).append((time, fit is not False))
    return tuple(_chart(workload, times) for workload, times in by_workload.items())


def _chart(workload: str, times: list[tuple[PassTime, bool]]) -> BarChart:
    by_speed = sorted(times, key=lambda each: (not each[1], each[0].seconds))
    bars = tuple(_bar(time, fits=fits) for time, fits in by_speed[:_MOST_BARS])
    which = f", the first {len(bars)} of {len(times)}" if len(bars) < len(times) else ""
    return BarChart(f"Time of {workload}{which} (line: 90 % interval)", bars)


def _bar(time: PassTime, *, fits: bool) -> Bar:
    text = units.seconds(time.seconds)
    return Bar(
        f"{time.accelerator.name}, {time.execution}",
        (Piece("", time.seconds, text),),
        text if fits else f"({text})",
        band=(time.low, time.high),
        is_hypothetical=not fits,
    )
