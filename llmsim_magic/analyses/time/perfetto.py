"""Export of a predicted pass to Perfetto, as Chrome trace events."""

from typing import Any

from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.trace.trace import Trace

_PROCESS = 1
_OPERATORS, _LAYERS = 1, 2


def chrome_trace(trace: Trace, time: PassTime) -> dict[str, Any]:
    """A pass as Chrome trace events, which Perfetto opens as a JSON file.

    Args:
        trace: The pass.
        time: Its predicted time per operator.

    Returns:
        Events on one track for operators and one for layers. `ts` and `dur` are in microseconds;
        `args` has the band, the kernel class and the bounding resource.
    """
    events: list[dict[str, Any]] = [
        _metadata(
            "process_name", 0, f"{trace.model.name} on {time.accelerator.name}, {time.execution}"
        ),
        _metadata("thread_name", _OPERATORS, f"operators ({time.execution})"),
        _metadata("thread_name", _LAYERS, "layers"),
    ]
    operators = trace.expand_replays(trace.recorded.operators)
    spans: dict[str, list[float]] = {}
    now = 0.0
    for path, operator, layer, predicted in zip(
        trace.paths, operators, layers(trace), time.operators, strict=True
    ):
        duration = predicted.seconds * 1e6
        args = {
            "path": path,
            "class": predicted.kind,
            "low_us": predicted.low * 1e6,
            "high_us": predicted.high * 1e6,
            "binds": predicted.binds,
            "of_peak": predicted.of_peak,
            "of_bandwidth": predicted.of_bandwidth,
        }
        events.append(_span(operator.op, _OPERATORS, now, duration, args))
        if layer is not None:
            span = spans.setdefault(layer.path, [now, now])
            span[1] = now + duration
        now += duration
    events += [_span(path, _LAYERS, start, end - start, {}) for path, (start, end) in spans.items()]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _span(
    name: str, track: int, start: float, duration: float, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": _PROCESS,
        "tid": track,
        "ts": start,
        "dur": duration,
        "args": args,
    }


def _metadata(what: str, track: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PROCESS, "tid": track, "args": {"name": name}}
