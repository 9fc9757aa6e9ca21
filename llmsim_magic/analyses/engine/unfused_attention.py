"""Attention written out as matmul, softmax and matmul, for which an engine has one fused kernel.

A model that adds sinks or caps its scores, and any model run with eager attention, writes the
score matrix `[batch, heads, queries, keys]` to memory. Fused kernels of engines never do.
"""

from dataclasses import dataclass

from msgspec.structs import replace

from llmsim_magic.analyses.engine.kernel_rewrite import KernelRewrite
from llmsim_magic.analyses.kernels.aliasing import distinct_elements
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.records.trace.recorded import Kernel, Tensor
from llmsim_magic.records.trace.trace import numel

FUSED_ATTENTION = "aten.scaled_dot_product_attention.default"
_SOFTMAXES = frozenset({"_softmax", "softmax", "_safe_softmax"})
_COPIES = frozenset({"clone", "_to_copy", "copy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """Indices of kernels: the product of queries and keys, the softmax, the product with values.

    `inner` are the kernels from the first product to before the last. `statistics` reduce the
    scores of each row to a number for later kernels, such as its log-sum-exp, which fused kernels
    return as well.
    """

    scores: int
    softmax: int
    output: int
    inner: frozenset[int]
    statistics: frozenset[int]


def fuse_attention(rewrite: KernelRewrite) -> bool:
    """Make each written-out attention one kernel; returns whether there was any."""
    found = [
        attention
        for place, kernel in enumerate(rewrite.kernels)
        if short_name(kernel.name) in _SOFTMAXES
        and not kernel.is_view
        and (attention := _attention_of(rewrite, place)) is not None
    ]
    for attention in found:
        _fuse(rewrite, attention)
    return bool(found)


def _attention_of(rewrite: KernelRewrite, softmax: int) -> _Attention | None:
    """The attention around a softmax; None if it is no attention, or its scores are used again."""
    before = _kernels_before(rewrite, softmax)
    products = {place for place in before if _is_product(rewrite, place)}
    if len(products) != 1:
        return None
    scores = products.pop()
    inner = _kernels_after(rewrite, scores, before | {softmax})
    after = _kernels_after(rewrite, softmax, None)
    outputs = {place for place in after if _is_product(rewrite, place)}
    if len(outputs) != 1:
        return None
    output = outputs.pop()
    inner |= after - {output}
    statistics = _statistics(rewrite, inner, _row_count(rewrite, softmax)) - {output}
    if not rewrite.are_internal(inner, inner | statistics | {output}):
        return None
    return _Attention(
        scores=scores,
        softmax=softmax,
        output=output,
        inner=frozenset(inner),
        statistics=frozenset(statistics),
    )


def _statistics(rewrite: KernelRewrite, inner: set[int], rows: int) -> set[int]:
    """Kernels that read what `inner` writes and write one number for each row of scores."""
    written = {storage for place in inner for storage in rewrite.written_storages(place)}
    readers = {reader for storage in written for reader in rewrite.readers.get(storage, ())}
    return {
        reader
        for reader in readers - inner
        if all(numel(rewrite.tensors[t].shape) == rows for t in rewrite.kernels[reader].outputs)
    }


def _is_product(rewrite: KernelRewrite, place: int) -> bool:
    """Whether a kernel multiplies two activations."""
    kernel = rewrite.kernels[place]
    return (
        bool(kernel.flops) and len(kernel.inputs) > 1 and not rewrite.has_role(place, "parameter")
    )


def _rows(tensor: Tensor) -> int:
    return numel(tensor.shape[:-1])


def _row_count(rewrite: KernelRewrite, place: int) -> int:
    kernel = rewrite.kernels[place]
    written = kernel.outputs or kernel.writes
    return _rows(rewrite.tensors[written[0]]) if written else 0


def _kernels_before(rewrite: KernelRewrite, softmax: int) -> set[int]:
    """Kernels that lead to a softmax, each with its number of rows, back to the first products."""
    rows = _row_count(rewrite, softmax)
    found: set[int] = set()
    pending = [softmax]
    while pending:
        place = pending.pop()
        for storage in rewrite.read_storages(place):
            for writer in rewrite.writers.get(storage, ()):
                is_new = writer < place and writer not in found
                if not is_new or _row_count(rewrite, writer) != rows:
                    continue
                found.add(writer)
                if not rewrite.kernels[writer].flops:
                    pending.append(writer)
    return found


def _kernels_after(rewrite: KernelRewrite, start: int, within: set[int] | None) -> set[int]:
    """Kernels that a kernel leads to, up to the next products; only those of `within` if given."""
    found: set[int] = {start}
    pending = [start]
    while pending:
        place = pending.pop()
        for storage in rewrite.written_storages(place):
            for reader in rewrite.readers.get(storage, ()):
                if reader < place or reader in found:
                    continue
                if within is not None and reader not in within:
                    continue
                found.add(reader)
                if not rewrite.kernels[reader].flops:
                    pending.append(reader)
    return found if within is not None else found - {start}


def _fuse(rewrite: KernelRewrite, attention: _Attention) -> None:
    scores, output = rewrite.kernels[attention.scores], rewrite.kernels[attention.output]
    softmax = rewrite.kernels[attention.softmax]
    *batch, heads, queries, _ = (1, 1, *rewrite.tensors[softmax.outputs[0]].shape)
    batches = numel(tuple(batch))
    rows = batches * heads * queries
    keys = numel(rewrite.tensors[scores.outputs[0]].shape) // rows
    width = (scores.flops or 0) // (2 * rows * keys)
    value_width = (output.flops or 0) // (2 * rows * keys)
    users = {attention.scores, attention.output}
    sources = [
        _source(rewrite, index, users)
        for index in (*scores.inputs[-2:], output.inputs[-1])  # query, key, value
    ]
    sizes = ((queries, width), (keys, width), (keys, value_width))
    inputs = []
    for (tensor, _), (tokens, each) in zip(sources, sizes, strict=True):
        read = rewrite.tensors[tensor]
        own_heads = max(distinct_elements(read) // max(batches * tokens * each, 1), 1)
        inputs.append(rewrite.add_tensor((batches, own_heads, tokens, each), read, read.storage))
    is_causal = queries > 1 and rewrite.role(inputs[1]) == "cache"
    rewrite.remove(attention.inner)
    for _, copies in sources:
        rewrite.remove(copies)
    for place in attention.statistics:
        rewrite.kernels[place] = replace(rewrite.kernels[place], inputs=())
    rewrite.kernels[attention.output] = Kernel(
        FUSED_ATTENTION,
        output.operator,
        tuple(inputs),
        output.outputs,
        output.writes,
        False,
        False,
        is_causal,
        (scores.flops or 0) + (output.flops or 0),
    )


def _source(rewrite: KernelRewrite, tensor: int, users: set[int]) -> tuple[int, list[int]]:
    """The tensor that an operand was copied from, and the copies, if `users` alone read them."""
    copies: list[int] = []
    while True:
        storage = rewrite.tensors[tensor].storage
        writers = rewrite.writers.get(storage, ())
        readers = rewrite.readers.get(storage, ())
        is_own = rewrite.storages[storage].role == "activation" and storage not in rewrite.results
        if len(writers) != 1 or not is_own or not users.issuperset(readers):
            return tensor, copies
        kernel = rewrite.kernels[writers[0]]
        if short_name(kernel.name) not in _COPIES or len(kernel.inputs) != 1:
            return tensor, copies
        copies.append(writers[0])
        users = {writers[0]}
        tensor = kernel.inputs[0]
