"""When the devices of data parallelism exchange shards and gradients, and who waits for it."""

from collections.abc import Mapping, Sequence

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.time.kernel_sizes import collective_shape
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace


def exchange_seconds(trace: Trace, accelerator: Accelerator) -> dict[int, float]:
    """Seconds of the exchanges among devices of data parallelism, by the order of their operator.

    Raises:
        CannotPredict: If the catalogue lacks the device's link to others.
    """
    record, found = trace.unrolled, {}
    for order, kernels in enumerate(record.kernels_by_operator):
        sizes = [collective_shape(record, each, each.ranks) for each in kernels if each.ranks]
        priced = [estimate(size, accelerator, calibration()) for size in sizes if size is not None]
        if priced:
            found[order] = sum(each.seconds for each in priced)
    return found


def with_exchanges(
    trace: Trace, seconds: Sequence[float], exchanges: Mapping[int, float]
) -> list[float]:
    """Seconds of each operator of a step with what it waits for exchanges between devices.

    Exchanges run beside the kernels, one after another. A reduction starts when its gradients are
    ready. A gather of parameters starts when those of the unit before were copied out, for the host
    runs ahead: a unit is gathered while the one before it computes. What reads the result waits,
    and a step ends with its last exchange. So a unit takes the longer of the two.

    Args:
        trace: A training step without replays.
        seconds: Those of each operator without exchanges.
        exchanges: Seconds of the exchanges that operators start, by order.

    Returns:
        Seconds of each operator, which sum to those of the step.
    """
    read, written = _storages(trace)
    ready: dict[int, float] = {}
    now = link = copied = 0.0
    found = []
    for order, own in enumerate(seconds):
        end = now + own
        awaited = [ready[storage] for storage in read[order] if storage in ready]
        if awaited:
            end = max(now, *awaited) + own
            copied = end
        found.append(end - now)
        now = end
        if order in exchanges:
            operator = trace.operators[order]
            is_ahead = operator.op == "all_gather" and operator.part != "optimizer"
            link = max(link, copied + own if is_ahead else now) + exchanges[order]
            ready |= dict.fromkeys(written[order], link)
    if found:
        found[-1] += max(link - now, 0.0)
    return found


@memoize
def _storages(trace: Trace) -> tuple[list[set[int]], list[set[int]]]:
    """The storages that each operator reads, and those that it writes."""
    record = trace.unrolled
    read, written = [], []
    for kernels in record.kernels_by_operator:
        inputs = {record.tensors[each].storage for kernel in kernels for each in kernel.inputs}
        outputs = {record.tensors[each].storage for kernel in kernels for each in kernel.outputs}
        read.append(inputs)
        written.append(outputs)
    return read, written
