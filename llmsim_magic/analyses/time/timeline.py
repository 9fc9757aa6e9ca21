"""A pass on a device as data to draw: a timeline, and the points of a roofline plot."""

from dataclasses import dataclass
from typing import Any

from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.time.latency import PassTime
from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace

_PROCESS = 1
_OPERATORS, _LAYERS = 1, 2


@dataclass(frozen=True, slots=True)
class Point:
    """An operator in a roofline plot: FLOPs per byte, and FLOP/s that it is predicted to reach.

    `low` and `high` are the FLOP/s at the ends of its band; `order` is the operator's.
    """

    order: int
    intensity: float
    flops_per_s: float
    low: float
    high: float
    binds: Binds


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device allows: FLOP/s below `ridge` FLOPs per byte follow from `bandwidth`."""

    dtype: str
    peak_flops: float
    bandwidth_bytes_per_s: float

    @property
    def ridge(self) -> float:
        return self.peak_flops / self.bandwidth_bytes_per_s


def points(time: PassTime) -> tuple[Point, ...]:
    """Every operator that multiplies, in execution order."""
    return tuple(
        Point(
            order,
            operator.flops / operator.bytes,
            operator.flops / operator.seconds,
            operator.flops / operator.high,
            operator.flops / operator.low,
            operator.binds,
        )
        for order, operator in enumerate(time.operators)
        if operator.flops and operator.bytes and operator.seconds
    )


def roofs(accelerator: Accelerator) -> tuple[Roof, ...]:
    """One roof for each arithmetic of a device; none where its bandwidth is not known."""
    bandwidth = accelerator.bandwidth_bytes_per_s
    if not bandwidth:
        return ()
    return tuple(Roof(name, peak, bandwidth) for name, peak in accelerator.peak_flops.items())


def chrome_trace(trace: Trace, time: PassTime) -> dict[str, Any]:
    """A pass as Chrome's trace events, which Perfetto opens once written as JSON.

    Operators follow one another on one track, the layers that they belong to stand on another.
    `ts` and `dur` are microseconds; `args` holds the band, the class and what binds.
    """
    events: list[dict[str, Any]] = [
        _named("process_name", 0, f"{trace.model.name} on {time.accelerator.name}"),
        _named("thread_name", _OPERATORS, f"operators ({time.regime})"),
        _named("thread_name", _LAYERS, "layers"),
    ]
    operators = trace.expand_replays(trace.recorded.operators)
    spans: dict[str, list[float]] = {}
    now = 0.0
    for path, operator, layer, taken in zip(
        trace.paths, operators, layers(trace), time.operators, strict=True
    ):
        duration = taken.seconds * 1e6
        args = {
            "path": path,
            "class": taken.kind,
            "low_us": taken.low * 1e6,
            "high_us": taken.high * 1e6,
            "binds": taken.binds,
            "of_peak": taken.of_peak,
            "of_bandwidth": taken.of_bandwidth,
        }
        events.append(_span(operator.op, _OPERATORS, now, duration, args))
        if layer is not None:
            span = spans.setdefault(layer.path, [now, now])
            span[1] = now + duration
        now += duration
    events += [
        _span(path, _LAYERS, begun, ended - begun, {}) for path, (begun, ended) in spans.items()
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _span(
    name: str, track: int, begun: float, duration: float, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": _PROCESS,
        "tid": track,
        "ts": begun,
        "dur": duration,
        "args": args,
    }


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PROCESS, "tid": track, "args": {"name": name}}
