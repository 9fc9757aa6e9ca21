"""What an engine holds in memory during a pass: no masks, and logits of last tokens only."""

import operator
from collections.abc import Sequence
from dataclasses import replace

from msgspec.structs import replace as struct_replace

from llmsim_magic.analyses.engine.engine_trace import engine_trace
from llmsim_magic.analyses.engine.last_logits import with_last_logits
from llmsim_magic.analyses.engine.unfused_attention import FUSED_ATTENTION
from llmsim_magic.analyses.kernels.kernel_storages import storages, written_storages
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import Trace

_QUERY_KEY_VALUE = 3


@memoize
def engine_allocations(trace: Trace) -> Trace:
    """The pass with the tensors that an engine holds; for memory only, not for times.

    The kernels are those of `engine_trace`, without replays, and no variable of the model's code
    holds what they make. Masks that only attention reads are
    left out, because an engine's kernels know which keys a query sees. In a model that generates,
    logits are those of the last token of each sequence.
    """
    record = _without_masks(engine_trace(trace).unrolled, trace.unrolled)
    parallel = trace.model.parallel
    if trace.model.generates and parallel.stage == parallel.pp - 1:
        record = with_last_logits(record, trace.workload.batch)
    kernels = (
        struct_replace(kernel, held=()) if kernel.held else kernel for kernel in record.kernels
    )
    record = replace(record, kernels=tuple(kernels))
    return replace(trace, recorded=record, replays=())


def _without_masks(record: Record, original: Record) -> Record:
    """The record without the kernels that made what no kernel reads any more.

    Args:
        record: The pass as an engine runs it.
        original: The pass as recorded, with its kernels in the same places. Kernels whose results
            it does not read either stay.
    """
    kernels = [_without_mask(record, kernel) for kernel in record.kernels]
    if all(map(operator.is_, kernels, original.kernels)):
        return record
    removed = _unread(record, kernels) - _unread(original, original.kernels)
    used: set[int] = set()
    for place, kernel in enumerate(kernels):
        if place not in removed and not kernel.is_view:
            used |= written_storages(record, kernel) | storages(record, kernel.inputs)
    gone: set[int] = set()
    for place in removed:
        gone |= written_storages(record, kernels[place]) - used
    for place, kernel in enumerate(kernels):
        is_view_of_gone = kernel.is_view and gone & written_storages(record, kernel)
        if place in removed or is_view_of_gone:
            kernels[place] = struct_replace(
                kernel, inputs=(), outputs=(), writes=(), is_view=True, flops=None
            )
    return replace(record, kernels=tuple(kernels))


def _without_mask(record: Record, kernel: Kernel) -> Kernel:
    """Attention without its mask or bias of each query and key; other kernels as they are."""
    if kernel.name != FUSED_ATTENTION:
        return kernel
    query, key = record.shapes(kernel.inputs[:2])
    operands, rest = kernel.inputs[:_QUERY_KEY_VALUE], kernel.inputs[_QUERY_KEY_VALUE:]
    mask_shape = (query[-2], key[-2])
    kept = tuple(index for index in rest if record.tensors[index].shape[-2:] != mask_shape)
    return kernel if kept == rest else struct_replace(kernel, inputs=(*operands, *kept))


def _unread(record: Record, kernels: Sequence[Kernel]) -> set[int]:
    """Places of kernels, other than matmuls, whose results are activations that nothing reads."""
    read = storages(record, record.results)
    found: set[int] = set()
    for place in reversed(range(len(kernels))):
        kernel = kernels[place]
        if kernel.is_view:
            continue
        written = written_storages(record, kernel)
        is_needed = kernel.flops or not written or written & read
        if is_needed or any(record.storages[each].role != "activation" for each in written):
            read |= storages(record, kernel.inputs) - written
        else:
            found.add(place)
    return found
