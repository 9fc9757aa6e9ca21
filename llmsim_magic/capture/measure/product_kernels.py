"""Kernels that multiply: matmuls, products of a batch, experts of a mixture, and attention."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.measure.bench import Bench, Job, nbytes
from llmsim_magic.capture.measure.timers import Run
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchKind

# Batch, query heads, key-value heads, head dimension, queries, keys.
AttentionSize = tuple[int, int, int, int, int, int]


def matmul_job(bench: Bench, m: int, n: int, k: int) -> Job:
    """Activations of m × k by weights of n × k, other weights each time."""
    rows, weights = bench.random(m, k), bench.weights(n, k)
    runs = (partial(functional.linear, rows, each) for each in weights)
    return _matmul("mm", (rows, weights[0]), (m, n, k), 1, *runs)


def batched_job(bench: Bench, products: int, m: int, n: int, k: int) -> Job:
    """Products of activations, m × k by k × n each."""
    left, right = bench.random(products, m, k), bench.random(products, k, n)
    return _matmul("bmm", (left, right), (m, n, k), products, partial(torch.bmm, left, right))


def grouped_job(bench: Bench, experts: int, rows: int, n: int, k: int) -> Job:
    """Rows, evenly spread over experts, by the weights of their expert."""
    x = bench.random(rows, k)
    weights = tuple(each.transpose(1, 2) for each in bench.weights(experts, n, k))
    ends = torch.arange(1, experts + 1, device=bench.device) * rows // experts
    offsets = ends.to(torch.int32)
    runs = (partial(functional.grouped_mm, x, each, offs=offsets) for each in weights)
    active = min(rows, experts)
    kernel = TorchKernel(
        kind="grouped matmul",
        bytes=nbytes(x)
        + nbytes(weights[0]) // experts * active
        + nbytes(offsets)
        + rows * n * x.itemsize,
        elements=rows * n,
        flops=2 * rows * n * k,
        dtype=arithmetic(dtype_name(x.dtype)),
        shape=(-(-rows // active), n, k),
        products=active,
    )
    return Job.on((x, weights[0], offsets), "_grouped_mm", kernel, *runs)


def _matmul(
    name: str,
    operands: tuple[Tensor, Tensor],
    shape: tuple[int, int, int],
    products: int,
    *runs: Run,
) -> Job:
    rows, columns, length = shape
    elements = products * rows * columns
    kernel = TorchKernel(
        kind="matmul",
        bytes=sum(map(nbytes, operands)) + elements * operands[0].itemsize,
        elements=elements,
        flops=2 * elements * length,
        dtype=arithmetic(dtype_name(operands[0].dtype)),
        shape=shape,
        products=products,
    )
    return Job.on(operands, name, kernel, *runs)


def attention_operands(
    bench: Bench, size: AttentionSize, *, is_masked: bool = False
) -> tuple[Tensor, ...]:
    """Queries, keys and values, contiguous as [batch, heads, tokens, width], and a mask if any.

    The mask is [batch, 1, queries, keys], in the dtype of the queries, as implementations read it.
    """
    batch, heads, kv_heads, width, queries, keys = size
    query = bench.random(batch, heads, queries, width)
    key, value = (bench.random(batch, kv_heads, keys, width) for _ in range(2))
    mask = (bench.random(batch, 1, queries, keys),) if is_masked else ()
    return query, key, value, *mask


def attention_job(
    bench: Bench,
    size: AttentionSize,
    backend: SDPBackend | None = None,
    *,
    is_masked: bool = False,
) -> Job:
    """Causal attention, or one step of it, by one implementation; None is torch's own choice."""
    batch, heads, _, width, queries, keys = size
    operands = attention_operands(bench, size, is_masked=is_masked)
    kind: TorchKind = "attention masked" if is_masked else "attention"
    is_causal = queries > 1 and not is_masked
    flops = 4 * batch * heads * queries * keys * width
    kernel = TorchKernel(
        kind="attention decode" if queries == 1 else kind,
        bytes=sum(map(nbytes, operands)) + nbytes(operands[0]),
        elements=operands[0].numel(),
        flops=flops // 2 if is_causal else flops,
        dtype=arithmetic(dtype_name(operands[0].dtype)),
        shape=(queries, keys, width),
        products=batch * heads,
        implementation=implementation_name(backend or _selected(*operands)),
    )
    run = partial(_attend, backend, *operands)
    return Job.on(operands, "scaled_dot_product_attention", kernel, run)


def implementation_name(backend: SDPBackend) -> str:
    """`cudnn`, `flash`, `efficient` or `math`."""
    return str(backend.name).removesuffix("_ATTENTION").lower()


def _selected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> SDPBackend:
    """The implementation that torch selects."""
    is_causal, is_grouped = _is_causal(query, mask), _is_grouped(query, key)
    choice = torch._fused_sdp_choice(
        query, key, value, mask, is_causal=is_causal, enable_gqa=is_grouped
    )
    return SDPBackend(choice)


def _is_causal(query: Tensor, mask: Tensor | None) -> bool:
    return query.shape[-2] > 1 and mask is None


def _is_grouped(query: Tensor, key: Tensor) -> bool:
    return query.shape[1] != key.shape[1]


def _attend(
    backend: SDPBackend | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            is_causal=_is_causal(query, mask),
            enable_gqa=_is_grouped(query, key),
        )
