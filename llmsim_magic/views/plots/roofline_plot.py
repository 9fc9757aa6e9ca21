"""A roofline plot: what operators are predicted to reach of what a device allows."""

import math
from collections import Counter
from functools import partial

from llmsim_magic.analyses.graph.layer_folding import identical_layers, representatives
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.time.kernel_sizes import compute_dtype
from llmsim_magic.analyses.time.latency import PassTime
from llmsim_magic.analyses.time.roofline_points import points, roofs
from llmsim_magic.records.errors import CannotPredict
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.plots.plot import Plot, drawable, drawing, readable
from llmsim_magic.views.plots.roofline_figure import Dot, Scene, figure

_STARTED = {
    "graph": "replayed as a graph",
    "eager": "started by the host",
    "events": "started in a stream",
}


def roofline_plot(trace: Trace, time: PassTime) -> Plot:
    """FLOP/s over FLOPs per byte, both logarithmic, of every operator that multiplies.

    Its area is its share of the time, its bar where nine of ten measurements would lie. Layers
    that repeat are drawn once, with their number. The roof of the dtype of the trace is bold.

    Raises `CannotPredict` for a device whose bandwidth or peaks are not known.
    """
    scene = _scene(trace, time)
    drawn = partial(_drawn, scene)
    tips = {f"dot{place}": dot.told for place, dot in enumerate(scene.dots)}
    svg = readable(drawn("svg"), f"{scene.title}. {scene.note}", tips)
    return Plot(svg, scene.title, drawn)


def _drawn(scene: Scene, fmt: str) -> bytes:
    return drawing(partial(figure, scene), scene.title, fmt)


def _scene(trace: Trace, time: PassTime) -> Scene:
    found = dots(trace, time)
    share = math.fsum(dot.share for dot in found)
    title = drawable(
        f"{drawable(trace.model.name, 60)} on {time.accelerator.name}: {trace.workload}"
    )
    whole = f"{_seconds(time.seconds)} ({_seconds(time.low)} to {_seconds(time.high)})"
    note = (
        f"Operators that multiply: {100 * share:.0f} % of {whole}, "
        f"{_STARTED[time.regime]}; bars: where nine of ten measurements would lie"
    )
    allowed = roofs(time.accelerator)
    if not allowed:
        why = "the catalogue has no bandwidth or no peak for it"
        raise CannotPredict("roofline", time.accelerator.name, why)
    return Scene(title, note, compute_dtype(trace.model.dtype), found, allowed)


def dots(trace: Trace, time: PassTime) -> tuple[Dot, ...]:
    """One dot for operators that are the same work, those that take most of the time first."""
    twins = representatives(trace, identical_layers(trace))
    counts = Counter(twins)
    spent = dict.fromkeys(counts, 0.0)
    for twin, operator in zip(twins, time.operators, strict=True):
        spent[twin] += operator.seconds
    found = [
        Dot(
            _name(trace, point.order),
            time.operators[point.order].kind or "",
            counts[point.order],
            spent[point.order] / time.seconds,
            point,
        )
        for point in points(time)
        if twins[point.order] == point.order
    ]
    return tuple(sorted(found, key=lambda dot: -dot.share))


def _name(trace: Trace, order: int) -> str:
    """A module by its path within its layer, a function by its own name."""
    recorded = trace.recorded.operators[trace.steps[order][0]]
    if recorded.kind == "function":
        return drawable(recorded.op, 40)
    layer, path = layers(trace)[order], trace.paths[order]
    return drawable(path if layer is None else path.removeprefix(f"{layer.path}."), 40)


def _seconds(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"
