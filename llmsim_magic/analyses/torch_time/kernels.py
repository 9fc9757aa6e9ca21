"""The kernels of a pass as PyTorch starts them, by what decides how long they take."""

import math
from collections.abc import Iterable, Iterator

from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.parallel.collectives import collective_kind
from llmsim_magic.analyses.time.kernel_sizes import (
    ATTENTIONS,
    StoredDtypes,
    compute_dtype,
    product_shape,
    stored_weight,
)
from llmsim_magic.analyses.torch_time.attention_kernels import attention_kernels
from llmsim_magic.analyses.torch_time.training_kernels import training_kernels
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchKind
from llmsim_magic.records.trace.recorded import Kernel, Record, Tensor
from llmsim_magic.records.trace.trace import numel

_REDUCTIONS = """
mean sum prod amax amin max min argmax argmin any all var std var_mean norm linalg_vector_norm
logsumexp histc bincount cumsum cumprod logcumsumexp softmax _softmax _log_softmax
native_layer_norm native_group_norm native_batch_norm _fused_rms_norm
_softmax_backward_data _log_softmax_backward_data native_batch_norm_backward
_fused_rms_norm_backward nll_loss_forward
"""
_LOOKUPS = """
embedding index _unsafe_index index_select gather index_put index_put_ _index_put_impl_ index_copy
index_copy_ index_add index_add_ scatter scatter_ scatter_add scatter_add_ scatter_reduce
masked_select nonzero slice_scatter select_scatter repeat_interleave searchsorted
embedding_dense_backward
"""
_MATRIX = 2  # dimensions
_ALIGNMENT = 16  # bytes, beyond which it makes no difference
_KINDS: dict[str, TorchKind] = {
    "sort": "sort",
    "argsort": "sort",
    "topk": "topk",
    **dict.fromkeys(_REDUCTIONS.split(), "reduction"),
    **dict.fromkeys(_LOOKUPS.split(), "gathered"),
}


def torch_kernels(
    record: Record,
    accelerator: Accelerator,
    *,
    stored: StoredDtypes | None = None,
    with_masks: bool = False,
) -> tuple[tuple[TorchKernel, ...], ...]:
    """The kernels of each recorded operator, in order, without views and collectives.

    Args:
        record: The pass.
        accelerator: The device, which decides the implementation of attention.
        stored: Dtypes that weights are stored in; as traced if None.
        with_masks: Whether attention that skips its mask reads one all the same, as in a model of
            transformers that is captured; see `makes_masks`.
    """
    return kernels_on(record, accelerator.architecture, stored or StoredDtypes(), with_masks)


@memoize_by_options
def kernels_on(
    record: Record, architecture: str, stored: StoredDtypes, with_masks: bool
) -> tuple[tuple[TorchKernel, ...], ...]:
    """As `torch_kernels`, on any device of an architecture."""

    def started(kernel: Kernel | TorchKernel) -> Iterator[TorchKernel]:
        if isinstance(kernel, Kernel):
            yield from attention_kernels(record, kernel, architecture, with_masks=with_masks)
        else:
            yield kernel

    return tuple(
        tuple(each for kernel in kernels for each in started(kernel))
        for kernels in _kernels_of_any_device(record, stored)
    )


@memoize_by_options
def _kernels_of_any_device(
    record: Record, stored: StoredDtypes
) -> tuple[tuple[TorchKernel | Kernel, ...], ...]:
    """The kernels of each operator; attention, which depends on the device, as it is recorded."""
    return tuple(
        tuple(
            each
            for kernel in kernels
            if collective_kind(kernel) is None
            for each in _started(record, kernel, stored)
        )
        for kernels in record.kernels_by_operator
    )


def _started(
    record: Record, kernel: Kernel, stored: StoredDtypes
) -> Iterable[TorchKernel | Kernel]:
    name = short_name(kernel.name)
    if name in ATTENTIONS:
        return (kernel,)
    if (of_training := training_kernels(record, kernel, name)) is not None:
        return of_training
    if kernel.flops:
        return (_product(record, kernel, name, stored),)
    return (_other(record, kernel, name),)


def _other(record: Record, kernel: Kernel, name: str) -> TorchKernel:
    read = [record.tensors[index] for index in kernel.inputs]
    written = [record.tensors[index] for index in kernel.writes or kernel.outputs]
    counts = [numel(tensor.shape) for tensor in written]
    kind = _KINDS.get(name) or _pointwise_kind(name, read, written)
    if kind != "gathered":  # a table is not read whole
        counts += [numel(tensor.shape) for tensor in read]
    return TorchKernel(
        kind=kind, bytes=sum(kernel_bytes(record, kernel)), elements=max(counts, default=0)
    )


def _pointwise_kind(name: str, read: list[Tensor], written: list[Tensor]) -> TorchKind:
    operands = [tensor for tensor in (*read, *written) if numel(tensor.shape) > 1]
    are_dense = all(map(_is_contiguous, operands))
    if name == "cat":
        return "pointwise" if are_dense else "joined"
    if not are_dense or len({tensor.shape for tensor in operands}) > 1:
        return "strided"
    return "cast" if len({tensor.dtype for tensor in operands}) > 1 else "pointwise"


def _is_contiguous(tensor: Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _product(record: Record, kernel: Kernel, name: str, stored: StoredDtypes) -> TorchKernel:
    out = record.tensors[kernel.outputs[0]]
    shape, products = product_shape(record, kernel)
    nbytes, dtype = sum(kernel_bytes(record, kernel)), compute_dtype(out.dtype)
    weight = stored_weight(record, kernel, stored)
    if weight is not None:
        traced, bits = weight
        dtype = stored.multiplied or dtype
        read = min(traced.nbytes, nbytes)
        nbytes -= round(read * (1 - bits / (8 * traced.itemsize)))
    return TorchKernel(
        kind="grouped matmul" if name == "_grouped_mm" else "matmul",
        bytes=nbytes,
        elements=max(numel(out.shape), 1),
        flops=kernel.flops or 0,
        dtype=dtype,
        shape=shape,
        products=products,
        alignment=_alignment([record.tensors[index] for index in kernel.inputs]),
    )


def _alignment(factors: Iterable[Tensor]) -> int:
    """Bytes, up to 16, of which the rows of matrices start at multiples; columns if transposed."""
    found = _ALIGNMENT
    for tensor in factors:
        sides = tensor.shape[-_MATRIX:]
        if len(sides) == _MATRIX and 1 not in sides:
            found = math.gcd(found, max(tensor.strides[-_MATRIX:]) * tensor.itemsize)
    return found
