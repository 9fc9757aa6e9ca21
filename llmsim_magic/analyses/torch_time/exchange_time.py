"""When the devices of data parallelism exchange shards and gradients, and who waits for it.

What overlaps: exchanges run beside the kernels, one after another. A reduction of gradients starts
when they are ready, while backward goes on, as the reducer of DistributedDataParallel and FSDP2 do.
A gather of parameters starts when those of the unit before were copied out, for the host runs
ahead: FSDP2 gathers a unit while the one before it computes. A gather of parameters that the
optimizer has updated (ZeRO 1 and 2) starts when they are, and overlaps with nothing. What reads the
result of an exchange waits for it, and a step ends with its last exchange.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.kernel_shapes import Collective, CollectiveKind
from llmsim_magic.records.trace.trace import Trace


def exchange_seconds(size: Collective, accelerator: Accelerator) -> float:
    """Seconds of an exchange among ranks of data parallelism.

    The same bytes over the same link take the same time, however they are exchanged: a ring reduces
    and hands out in two turns, which are a reduce-scatter and an all-gather. The three collectives
    were measured apart, in part on other machines and with other releases of NCCL, so that both
    ways have a price: theirs is the geometric mean.

    Raises:
        CannotPredict: If the catalogue lacks the device's link to others.
    """

    def seconds(of: CollectiveKind) -> float:
        return estimate(replace(size, of=of), accelerator, calibration()).seconds

    turns = seconds("reduce_scatter") + seconds("all_gather")
    both = math.sqrt(seconds("all_reduce") * turns)
    return both if size.of == "all_reduce" else both / 2


def waited_seconds(
    trace: Trace, seconds: Sequence[float], exchanges: Mapping[int, float]
) -> dict[int, float]:
    """Seconds for which a step waits for each exchange, by the order of its operator.

    A wait is that for the exchanges that run meanwhile, not for the operator that waits.

    Args:
        trace: A training step without replays.
        seconds: Those of each operator without exchanges.
        exchanges: Seconds of the exchanges that operators start, by order.
    """
    read, written = _storages(trace)
    waited = dict.fromkeys(exchanges, 0.0)
    running: deque[tuple[int, float, float]] = deque()
    ready: dict[int, float] = {}
    now = link = copied = 0.0
    for order, own in enumerate(seconds):
        awaited = [ready[storage] for storage in read[order] if storage in ready]
        if awaited:
            until = max(now, *awaited)
            _wait(running, now, until, waited)
            now = copied = until
            copied += own
        now += own
        if order in exchanges:
            operator = trace.operators[order]
            is_ahead = operator.op == "all_gather" and operator.part != "optimizer"
            start = max(link, copied + own if is_ahead else now)
            link = start + exchanges[order]
            running.append((order, start, link))
            ready |= dict.fromkeys(written[order], link)
    _wait(running, now, link, waited)
    return waited


def _wait(
    running: deque[tuple[int, float, float]], now: float, until: float, waited: dict[int, float]
) -> None:
    """Add the seconds between two times to those of the exchanges that run then."""
    while running and running[0][2] <= now:
        running.popleft()
    for order, start, end in running:
        if start >= until:
            break
        waited[order] += min(end, until) - max(start, now)


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
