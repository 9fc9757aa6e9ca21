"""The roofline plot: predicted FLOP/s of operators against the peaks of a device."""

import math
from collections import Counter
from functools import partial

from llmsim_magic.analyses.graph.layer_folding import identical_layers, representatives
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.time.kernel_sizes import compute_dtype
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline_points import points, roofs
from llmsim_magic.records.errors import CannotPredict
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.plots.plot import Plot, annotate_svg, display_name, render_figure
from llmsim_magic.views.plots.roofline_figure import Dot, RooflineData, roofline_figure


def roofline_plot(trace: Trace, time: PassTime) -> Plot:
    """Predicted FLOP/s over FLOPs per byte, on log axes, of every operator with FLOPs.

    A dot's area is the operator's share of the time, and its bar is the band that holds nine of
    ten measurements. Repeated layers are drawn once, with their count. The roof of the trace's
    dtype is bold.

    Raises:
        CannotPredict: the bandwidth or the peaks of the device are unknown.
    """
    data = _roofline_data(trace, time)
    render = partial(_render, data)
    tooltips = {f"dot{place}": dot.tooltip for place, dot in enumerate(data.dots)}
    svg = annotate_svg(render("svg"), f"{data.title}. {data.caption}", tooltips)
    return Plot(svg, data.title, render)


def _render(data: RooflineData, fmt: str) -> bytes:
    return render_figure(partial(roofline_figure, data), data.title, fmt)


def _roofline_data(trace: Trace, time: PassTime) -> RooflineData:
    device_roofs = roofs(time.accelerator)
    if not device_roofs:
        why = "the catalogue has no bandwidth or no peak for it"
        raise CannotPredict("roofline", time.accelerator.name, why)
    dots = operator_dots(trace, time)
    share = math.fsum(dot.share for dot in dots)
    title = display_name(
        f"{display_name(trace.model.name, 60)} on {time.accelerator.name} ({time.execution}): "
        f"{trace.workload}"
    )
    seconds, low, high = map(_format_seconds, (time.seconds, time.low, time.high))
    duration = f"{seconds} ({low} to {high})"
    caption = (
        f"Operators with FLOPs: {100 * share:.0f} % of {duration}, "
        f"{time.execution}; bars: 90 % interval"
    )
    return RooflineData(
        title=title,
        caption=caption,
        dtype=compute_dtype(trace.model.dtype),
        dots=dots,
        roofs=device_roofs,
    )


def operator_dots(trace: Trace, time: PassTime) -> tuple[Dot, ...]:
    """One dot per distinct operator, largest share of the time first; repeated layers share one."""
    representative_of = representatives(trace, identical_layers(trace))
    counts = Counter(representative_of)
    seconds = dict.fromkeys(counts, 0.0)
    for representative, operator in zip(representative_of, time.operators, strict=True):
        seconds[representative] += operator.seconds
    dots = [
        Dot(
            name=_dot_name(trace, point.order),
            kind=time.operators[point.order].kind or "",
            count=counts[point.order],
            share=seconds[point.order] / time.seconds,
            point=point,
        )
        for point in points(time)
        if representative_of[point.order] == point.order
    ]
    return tuple(sorted(dots, key=lambda dot: -dot.share))


def _dot_name(trace: Trace, order: int) -> str:
    """A module's path within its layer, or a function's name."""
    recorded = trace.recorded.operators[trace.steps[order][0]]
    if recorded.kind == "function":
        return display_name(recorded.op, 40)
    layer, path = layers(trace)[order], trace.paths[order]
    return display_name(path if layer is None else path.removeprefix(f"{layer.path}."), 40)


def _format_seconds(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"
