"""Multi-head latent attention in decode, with the projection of the latent absorbed.

The cache holds a latent of r channels for each token, and a rotary key that all heads share. A
model projects the whole cached latent to the keys and values of every head in each step. As that
projection is linear, it may be applied to the query and to the output instead, one token each
(DeepSeek-V2, arXiv 2405.04434, section 2.1.2), and engines do so:

    q' = q · W_k [heads, r]
    o' = attention(q' ‖ q_rotary, latent ‖ key_rotary, latent) [heads, r]
    o  = o' · W_v
"""

from dataclasses import dataclass

from llmsim_magic.analyses.engine.kernel_rewrite import KernelRewrite
from llmsim_magic.analyses.engine.unfused_attention import FUSED_ATTENTION
from llmsim_magic.analyses.kernels.elementwise_work import is_data_movement
from llmsim_magic.records.trace.recorded import Kernel
from llmsim_magic.records.trace.trace import numel

LATENT_ATTENTION = "engine.latent_attention.default"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Latent:
    """The kernels of one attention over a cached latent, and its sizes.

    `projection` makes keys and values of the latent, `moves` arrange them, `attention` reads them.
    `latent` and `rotary` are cached tensors; there is no `rotary` where no position is encoded.
    """

    projection: int
    moves: frozenset[int]
    attention: int
    latent: int
    rotary: int | None
    heads: int
    tokens: int
    key_width: int
    rotary_width: int
    value_width: int


def absorb_projections(rewrite: KernelRewrite) -> bool:
    """Absorb the projection of every cached latent; returns whether there was any."""
    found = [
        latent
        for place, kernel in enumerate(rewrite.kernels)
        if kernel.name == FUSED_ATTENTION and (latent := _latent_of(rewrite, place)) is not None
    ]
    for latent in found:
        _absorb(rewrite, latent)
    return bool(found)


def _latent_of(rewrite: KernelRewrite, attention: int) -> _Latent | None:
    """The latent that an attention's keys and values are projected from, if it is cached."""
    moves, projections, cached = _origins(rewrite, attention)
    if len(projections) != 1:
        return None
    projection = projections.pop()
    kernel = rewrite.kernels[projection]
    latent = next((index for index in kernel.inputs if rewrite.role(index) == "cache"), None)
    users = {*moves, attention}
    if latent is None or not rewrite.are_internal({*moves, projection}, users):
        return None
    query, _, value = (rewrite.tensors[index] for index in rewrite.kernels[attention].inputs[:3])
    *batch, heads, queries, query_width = query.shape
    value_width = value.shape[-1]
    columns, rest = divmod(rewrite.tensors[kernel.outputs[0]].shape[-1], heads)
    key_width = columns - value_width
    if rest or key_width <= 0 or key_width > query_width:
        return None
    return _Latent(
        projection=projection,
        moves=frozenset(moves),
        attention=attention,
        latent=latent,
        rotary=cached,
        heads=heads,
        tokens=numel(tuple(batch)) * queries,
        key_width=key_width,
        rotary_width=query_width - key_width,
        value_width=value_width,
    )


def _origins(rewrite: KernelRewrite, attention: int) -> tuple[set[int], set[int], int | None]:
    """Where keys and values come from: the moves, the projections, and a tensor of the cache."""
    moves: set[int] = set()
    projections: set[int] = set()
    cached: int | None = None
    inputs = rewrite.kernels[attention].inputs[1:3]
    pending = [(attention, index) for index in inputs]
    while pending:
        place, index = pending.pop()
        storage = rewrite.tensors[index].storage
        if rewrite.role(index) == "cache":
            cached = index
            continue
        for writer in rewrite.writers.get(storage, ()):
            kernel = rewrite.kernels[writer]
            if writer >= place or writer in moves:
                continue
            if kernel.flops and rewrite.has_role(writer, "parameter"):
                projections.add(writer)
            elif is_data_movement(kernel):
                moves.add(writer)
                written = rewrite.written_storages(writer)
                pending += [
                    (writer, each)
                    for each in kernel.inputs
                    if rewrite.tensors[each].storage not in written
                ]
            else:
                return set(), set(), None
    return moves, projections, cached


def _absorb(rewrite: KernelRewrite, found: _Latent) -> None:
    attention, projection = rewrite.kernels[found.attention], rewrite.kernels[found.projection]
    query = rewrite.tensors[attention.inputs[0]]
    latent = rewrite.tensors[found.latent]
    rank, heads, tokens = latent.shape[-1], found.heads, found.tokens
    *batch, _, queries, _ = query.shape
    batches = numel(tuple(batch))
    keys = numel(latent.shape[:-1]) // batches
    width = rank + found.rotary_width

    narrow = rewrite.add_tensor((heads, tokens, found.key_width), query, query.storage)
    key_weight = rewrite.add_result((heads, found.key_width, rank), query, "constant")
    value_weight = rewrite.add_result((heads, rank, found.value_width), query, "constant")
    absorbed = rewrite.add_result((heads, tokens, rank), query)
    wide = rewrite.add_tensor(
        (batches, heads, queries, width), query, rewrite.tensors[absorbed].storage
    )
    attended = rewrite.add_result((batches, heads, queries, rank), query)
    cached = [rewrite.add_tensor((batches, 1, keys, rank), latent, latent.storage)]
    if found.rotary is not None and found.rotary_width:
        rotary = rewrite.tensors[found.rotary]
        cached.append(
            rewrite.add_tensor((batches, 1, keys, found.rotary_width), rotary, rotary.storage)
        )
    views = {
        place
        for storage in rewrite.written_storages(found.projection)
        for place in rewrite.views.get(storage, ())
        if found.projection < place < found.attention
    }
    rewrite.remove({*found.moves, found.projection})
    rewrite.kernels[found.projection] = _product(
        projection.operator,
        (narrow, key_weight),
        (absorbed,),
        tokens * found.key_width * rank * heads,
    )
    rewrite.kernels[max(views | found.moves)] = Kernel(
        LATENT_ATTENTION,
        attention.operator,
        (wide, *cached),
        (attended,),
        (attended,),
        False,
        False,
        False,
        2 * batches * heads * queries * keys * (width + rank),
    )
    rewrite.kernels[found.attention] = _product(
        attention.operator,
        (attended, value_weight),
        attention.outputs,
        tokens * rank * found.value_width * heads,
    )


def _product(
    operator: int | None, inputs: tuple[int, ...], outputs: tuple[int, ...], products: int
) -> Kernel:
    """A batched matmul of so many multiply-adds."""
    return Kernel(
        "aten.bmm.default", operator, inputs, outputs, outputs, False, False, False, 2 * products
    )
