"""A trace at kernel level: every kernel that moves data is one operator."""

from dataclasses import replace

from msgspec import structs

from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Operator, Record, Replay
from llmsim_magic.records.trace.trace import Trace


@memoize
def split_by_kernel(trace: Trace) -> Trace:
    """The trace with one operator per kernel, named after the kernel; views are left out.

    Every analysis accepts the result. An operator's order is the kernel's index among the kernels
    that are not views.
    """
    record = trace.recorded
    operators: list[Operator] = []
    kernels = []
    before = [0]
    for kernel in record.kernels:
        order = None
        if not kernel.is_view and kernel.operator is not None:
            order, owner = len(operators), record.operators[kernel.operator]
            name, inputs = short_name(kernel.name), kernel.inputs
            path, source, held = owner.path, owner.source, owner.held
            operators.append(
                Operator(path, name, "function", inputs, kernel.outputs, source, held, owner.part)
            )
        kernels.append(structs.replace(kernel, operator=order))
        before.append(len(operators))
    return replace(
        trace,
        recorded=Record(
            storages=record.storages,
            tensors=record.tensors,
            kernels=tuple(kernels),
            operators=tuple(operators),
            calls=record.calls,
            results=record.results,
        ),
        replays=tuple(_renumber(replay, before) for replay in trace.replays),
    )


def _renumber(replay: Replay, before: list[int]) -> Replay:
    first, last = replay.kernels
    return structs.replace(
        replay,
        operators=(before[first], before[last]),
        before_operator=before[replay.before_kernel],
    )
