"""The time of each pass of a training step, and the share of the device's peak that it reaches."""

from collections.abc import Iterable

from llmsim_magic.analyses.cost.model_flops import model_flops_utilization
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace


def seconds_by_part(
    trace: Trace, time: PassTime, orders: Iterable[int] | None = None
) -> dict[Pass, float]:
    """Seconds of each pass of a step that runs any operator.

    Args:
        trace: a training step.
        time: its time.
        orders: the operators to count; all if None.
    """
    operators, steps, times = trace.recorded.operators, trace.steps, time.operators
    found: dict[Pass, float] = {}
    for order in range(len(steps)) if orders is None else orders:
        part = operators[steps[order][0]].part
        found[part] = found.get(part, 0.0) + times[order].seconds
    return found


def utilization(trace: Trace, time: PassTime) -> float | None:
    """The MFU of a training step; None for another pass, or where no peak is known."""
    if trace.training is None:
        return None
    return model_flops_utilization(trace, time.accelerator, time.seconds)
