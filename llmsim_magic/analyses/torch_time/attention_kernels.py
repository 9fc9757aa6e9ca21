"""The kernels that `scaled_dot_product_attention` comes to, by the implementation selected."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.time.kernel_sizes import compute_dtype
from llmsim_magic.analyses.torch_time.attention_choice import attention_implementation
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchKind
from llmsim_magic.records.trace.recorded import Kernel, Record, Tensor
from llmsim_magic.records.trace.trace import numel

_QUERY_KEY_VALUE = 3
_SINGLE = 4  # bytes of a float32, in which the math implementation works


@dataclass(frozen=True, slots=True)
class _Call:
    """The operands of a call, and whether a mask of each query and key is read."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    has_mask: bool
    is_causal: bool

    @property
    def lead(self) -> tuple[int, ...]:
        """Sequences and query heads."""
        return self.query.shape[:-2]

    @property
    def queries(self) -> int:
        return self.query.shape[-2]

    @property
    def keys(self) -> int:
        return self.key.shape[-2]

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share keys and values."""
        return self.lead[-1:] != self.key.shape[-3:-2]

    @property
    def scores(self) -> int:
        return math.prod(self.lead) * self.queries * self.keys


def attention_kernels(
    record: Record, kernel: Kernel, architecture: str, *, with_masks: bool
) -> Iterator[TorchKernel]:
    """The kernels of one call, in order.

    Args:
        record: The pass.
        kernel: The recorded attention.
        architecture: That of the device, which decides the implementation.
        with_masks: Whether a causal call without a mask, or one of a single query, gets one, and
            the keys and values of grouped heads are repeated for it.
    """
    operands = [record.tensors[index] for index in kernel.inputs]
    query, key, value = operands[:_QUERY_KEY_VALUE]
    mask = operands[_QUERY_KEY_VALUE] if len(operands) > _QUERY_KEY_VALUE else None
    added = with_masks and mask is None and (kernel.causal or query.shape[-2] == 1)
    call = _Call(query, key, value, mask, mask is not None or added, kernel.causal and not added)
    nbytes = sum(kernel_bytes(record, kernel))
    repeats = added and call.is_grouped
    if repeats:
        yield from _repeated_heads(call)
        copies = math.prod(call.lead) // max(math.prod(key.shape[:-2]), 1)
        nbytes += (copies - 1) * (key.nbytes + value.nbytes)
    if added or (mask is not None and mask.dtype == "bool"):
        yield from _converted_mask(call)
    key_heads = query if repeats else key
    implementation = attention_implementation(
        query, key_heads, value, architecture, has_mask=call.has_mask
    )
    if implementation == "math":
        yield from _math(call)
        return
    kind: TorchKind = "attention masked" if call.has_mask else "attention"
    flops = kernel.flops or 0
    yield TorchKernel(
        kind="attention decode" if call.queries == 1 else kind,
        bytes=nbytes,
        elements=numel(query.shape),
        flops=flops // 2 if call.is_causal else flops,  # the tiles above the diagonal are skipped
        dtype=compute_dtype(query.dtype),
        shape=(call.queries, call.keys, query.shape[-1]),
        products=math.prod(call.lead),
        implementation=implementation,
    )


def _repeated_heads(call: _Call) -> Iterator[TorchKernel]:
    """The copies of keys and values, one for each query head."""
    for each in (call.key, call.value):
        elements = math.prod(call.lead) * each.shape[-2] * each.shape[-1]
        nbytes = each.nbytes + elements * each.itemsize
        yield TorchKernel(kind="strided", bytes=nbytes, elements=elements)


def _converted_mask(call: _Call) -> Iterator[TorchKernel]:
    """A mask of booleans, made one of zeros and -inf, which implementations read."""
    batch = call.lead[0] if len(call.lead) > 1 else 1
    elements = batch * call.queries * call.keys if call.mask is None else numel(call.mask.shape)
    itemsize = call.query.itemsize
    yield TorchKernel(kind="pointwise", bytes=itemsize, elements=1)
    yield TorchKernel(kind="strided", bytes=elements * (1 + itemsize), elements=elements)


def _math(call: _Call) -> Iterator[TorchKernel]:
    """Products, mask and softmax one by one, in float32, with the scores written out."""
    if call.is_grouped:
        yield from _repeated_heads(call)
    products, width = math.prod(call.lead), call.query.shape[-1]
    value_width = call.value.shape[-1]
    query, key = products * call.queries * width, products * call.keys * width
    value, result = products * call.keys * value_width, products * call.queries * value_width
    yield from _converted(call, query, key, value)
    for scaled in (query, key):  # each by a root of the scale
        yield TorchKernel(kind="pointwise", bytes=2 * _SINGLE * scaled, elements=scaled)
    yield _product(products, (call.queries, call.keys, width))
    nbytes = 2 * _SINGLE * call.scores
    if call.has_mask or call.is_causal:
        yield TorchKernel(kind="strided", bytes=nbytes, elements=call.scores)
    yield TorchKernel(kind="reduction", bytes=nbytes, elements=call.scores)
    yield _product(products, (call.queries, value_width, call.keys))
    yield from _converted(call, result)


def _converted(call: _Call, *sizes: int) -> Iterator[TorchKernel]:
    """Operands of so many elements, made float32 ones or back."""
    if call.query.itemsize < _SINGLE:
        for elements in sizes:
            nbytes = elements * (call.query.itemsize + _SINGLE)
            yield TorchKernel(kind="cast", bytes=nbytes, elements=elements)


def _product(products: int, shape: tuple[int, int, int]) -> TorchKernel:
    """Products of float32 matrices, by rows, columns and the length of a sum."""
    rows, columns, length = shape
    return TorchKernel(
        kind="matmul",
        bytes=_SINGLE * products * (rows * length + length * columns + rows * columns),
        elements=products * rows * columns,
        flops=2 * products * rows * columns * length,
        dtype="fp32",
        shape=shape,
        products=products,
    )
