"""The sizes of kernels to time, which are those of models of 0.5 to 14 billion parameters."""

from dataclasses import dataclass
from functools import partial

from llmsim_magic.capture.measure.activation_kernels import (
    ACTIVATIONS,
    ROUTERS,
    SEVERAL_ROWS,
    activation_job,
)
from llmsim_magic.capture.measure.bench import Bench, JobMaker
from llmsim_magic.capture.measure.product_kernels import (
    AttentionSize,
    attention_job,
    batched_job,
    grouped_job,
    matmul_job,
)
from llmsim_magic.records.trace.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Sizes to time.

    Attributes:
        activations: rows and width.
        routers: rows and experts.
        matmuls: m, n and k of weights n × k.
        batched: number of products, with m, n and k.
        grouped: experts, with rows of all of them, n and k.
        attentions: batch, query heads, key-value heads, head dimension, queries and keys.
        masked: the same, of attention that reads a mask.
        models: names of small models, whose passes are timed too.
        workloads: of those models.
        pool_bytes: bytes of weights, more than a last-level cache holds.
        needed_bytes: bytes of everything that is on the device at a time.
    """

    activations: tuple[tuple[int, int], ...]
    routers: tuple[tuple[int, int], ...]
    matmuls: tuple[tuple[int, int, int], ...]
    batched: tuple[tuple[int, int, int, int], ...]
    grouped: tuple[tuple[int, int, int, int], ...]
    attentions: tuple[AttentionSize, ...]
    masked: tuple[AttentionSize, ...]
    models: tuple[str, ...]
    workloads: tuple[Workload, ...]
    pool_bytes: int
    needed_bytes: int


_STEPS = tuple(
    (batch, heads, kv_heads, head_dim, 1, keys)
    for heads, kv_heads, head_dim in (
        *((16, 16, 64), (32, 32, 96), (32, 32, 128), (8, 4, 256)),
        *((16, 8, 128), (32, 8, 64), (32, 8, 128), (28, 4, 128), (32, 4, 128)),
    )
    for batch, keys in ((1, 128), (1, 1024), (1, 8192), (16, 1024), (64, 512))
)
_PREFILLS = tuple(
    (batch, heads, kv_heads, head_dim, tokens, tokens)
    for heads, kv_heads, head_dim in (
        *((12, 12, 64), (32, 32, 96), (8, 4, 256)),
        *((16, 8, 128), (32, 8, 128), (28, 4, 128)),
    )
    for batch, tokens in ((1, 128), (1, 1024), (4, 2048), (1, 8192))
)
FULL = Grid(
    activations=(
        *((1, 1024), (16, 1024), (16, 4096), (128, 1024), (128, 4096), (1024, 1024)),
        *((1024, 4096), (1024, 14336), (8192, 1024), (8192, 4096), (8192, 8192)),
    ),
    routers=((1, 128), (16, 128), (1024, 64), (1024, 128), (8192, 128)),
    matmuls=(
        *(
            (m, n, k)
            for m in (1, 16, 64, 128, 512, 1024, 4096, 8192)
            for n, k in ((1024, 1024), (4096, 1024), (4096, 4096), (14336, 4096), (4096, 14336))
        ),
        *((m, n, 1024) for m in (1, 16, 1024) for n in (256, 32000, 151936)),
        (8192, 8192, 8192),
    ),
    batched=(
        *((16, 1, 1024, 128), (16, 1, 128, 1024), (256, 1, 1024, 128)),
        *((16, 1024, 1024, 128), (16, 1024, 128, 1024), (64, 1024, 1024, 64)),
    ),
    grouped=(
        *((128, rows, 1536, 2048) for rows in (8, 128, 8192, 32768)),
        *((128, rows, 2048, 768) for rows in (8, 128, 8192, 32768)),
        *((8, rows, 4096, 4096) for rows in (2, 32, 2048, 16384)),
    ),
    attentions=(*_STEPS, *_PREFILLS),
    masked=tuple(
        (batch, heads, heads, width, tokens, tokens)
        for heads, width in ((12, 64), (16, 128), (32, 128))
        for batch, tokens in ((1, 128), (1, 1024), (4, 2048))
    ),
    models=("gpt2", "Qwen/Qwen3-0.6B"),
    workloads=(
        *(Workload("prefill", 1, 128), Workload("prefill", 4, 512)),
        *(Workload("decode", 1, 128), Workload("decode", 8, 512)),
    ),
    pool_bytes=2**30,
    needed_bytes=4 * 2**30,
)


def job_makers(bench: Bench, grid: Grid = FULL) -> tuple[JobMaker, ...]:
    """One maker for each kernel and size; attention is by torch's own choice."""
    return (
        *makers_without_attention(bench, grid),
        *(partial(attention_job, bench, size) for size in grid.attentions),
        *(partial(attention_job, bench, size, is_masked=True) for size in grid.masked),
    )


def makers_without_attention(bench: Bench, grid: Grid = FULL) -> tuple[JobMaker, ...]:
    """One maker for each size of each kernel other than attention."""
    return (
        *(
            partial(activation_job, case, bench, rows, width)
            for rows, width in grid.activations
            for case in (*ACTIVATIONS, *(SEVERAL_ROWS if rows > 1 else ()))
        ),
        *(partial(activation_job, case, bench, *size) for size in grid.routers for case in ROUTERS),
        *(partial(matmul_job, bench, *size) for size in grid.matmuls),
        *(partial(batched_job, bench, *size) for size in grid.batched),
        *(partial(grouped_job, bench, *size) for size in grid.grouped),
    )
