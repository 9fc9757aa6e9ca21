"""The kernels that PyTorch starts for the ops which only training has: derivatives and updates."""

from collections.abc import Iterator, Sequence

from llmsim_magic.analyses.cost.traffic import kernel_bytes
from llmsim_magic.analyses.kernels.training_kernels import ATTENTIONS, list_length
from llmsim_magic.analyses.time.kernel_sizes import compute_dtype
from llmsim_magic.records.hardware.torch_kernel import TorchKernel
from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import numel

# As `MultiTensorApply.cuh` of torch: a launch takes so many blocks of so many elements, and by the
# number of lists so many tensors.
_CHUNK = 65_536
_BLOCKS = 320
_TENSORS = (110, 64, 48, 36, 30)

_TWO_REDUCTIONS = {"native_layer_norm_backward", "native_group_norm_backward"}
_FILLED = {"slice_backward", "select_backward", "diagonal_backward", "nll_loss_backward"}


def training_kernels(record: Record, kernel: Kernel, name: str) -> Iterator[TorchKernel] | None:
    """The kernels of one op, in order; None for an op that inference has too.

    Args:
        record: The step.
        kernel: The op.
        name: Its short name, such as `native_layer_norm_backward`.
    """
    if length := list_length(kernel, name.removesuffix("_")):
        return _over_lists(record, kernel, length)
    if name in ATTENTIONS:
        return _attention(record, kernel)
    if name == "convolution_backward":
        return _convolution(record, kernel)
    if name in _TWO_REDUCTIONS:
        return _normalization(record, kernel)
    if name in _FILLED:
        return _filled(record, kernel)
    return None


def _over_lists(record: Record, kernel: Kernel, length: int) -> Iterator[TorchKernel]:
    """The launches over lists of so many tensors; none if all are empty."""
    sizes = [numel(shape) for shape in record.shapes(kernel.inputs[:length])]
    made = 0 if set(kernel.writes) <= set(kernel.inputs) else len(kernel.outputs)
    launches = launches_over_lists(sizes, (len(kernel.inputs) + made) // length)
    if launches:
        yield TorchKernel(
            kind="pointwise",
            bytes=sum(kernel_bytes(record, kernel)),
            elements=sum(sizes),
            launches=launches,
        )


def launches_over_lists(sizes: Sequence[int], lists: int) -> int:
    """How many kernels torch launches for an op over lists of tensors.

    Args:
        sizes: elements of each tensor of a list.
        lists: how many lists the op reads and writes.
    """
    most = _TENSORS[min(lists, len(_TENSORS)) - 1]
    launches = blocks = tensors = 0
    for size in sizes:
        tensors, blocks = tensors + 1, blocks + -(-size // _CHUNK)
        full = max(blocks - 1, 0) // _BLOCKS
        if full:
            launches, blocks, tensors = launches + full, blocks - full * _BLOCKS, 1
        if tensors == most:
            launches, blocks, tensors = launches + (blocks > 0), 0, 0
    return launches + (blocks > 0)


def _attention(record: Record, kernel: Kernel) -> Iterator[TorchKernel]:
    """Derivative of attention: sums of gradient · output of each row, then the five products."""
    gradient, query, key = (record.tensors[index] for index in kernel.inputs[:3])
    elements = numel(query.shape)
    nbytes = gradient.nbytes + query.nbytes
    yield TorchKernel(kind="reduction", bytes=nbytes, elements=elements)
    yield TorchKernel(
        kind="attention backward",
        bytes=sum(kernel_bytes(record, kernel)),
        elements=elements,
        flops=(kernel.flops or 0) // (2 if kernel.causal else 1),
        dtype=compute_dtype(query.dtype),
        shape=(query.shape[-2], key.shape[-2], query.shape[-1]),
        products=numel(query.shape[:-2]),
    )


def _convolution(record: Record, kernel: Kernel) -> Iterator[TorchKernel]:
    """A product for the gradient of the input, and one for that of the weight."""
    gradient, values, weight = (record.tensors[index] for index in kernel.inputs[:3])
    of_input = {values.shape, weight.shape}
    made = [record.tensors[index] for index in kernel.outputs]
    products = [tensor for tensor in made if tensor.shape in of_input] or made[:1]
    flops = (kernel.flops or 0) // len(products)
    for tensor in products:
        elements = max(numel(tensor.shape), 1)
        columns = tensor.shape[1] if len(tensor.shape) > 1 else 1
        yield TorchKernel(
            kind="matmul",
            bytes=gradient.nbytes + values.nbytes + weight.nbytes,
            elements=elements,
            flops=flops,
            dtype=compute_dtype(gradient.dtype),
            shape=(
                max(elements // columns, 1),
                columns,
                max(round(flops / (2 * elements)), 1),
            ),
        )


def _normalization(record: Record, kernel: Kernel) -> Iterator[TorchKernel]:
    """Gradient of the input, then those of weight and bias: each reads gradient and input."""
    gradient, values = (record.tensors[index] for index in kernel.inputs[:2])
    elements, read = numel(values.shape), gradient.nbytes + values.nbytes
    yield TorchKernel(kind="reduction", bytes=read + values.nbytes, elements=elements)
    if len(kernel.outputs) > 1:
        yield TorchKernel(kind="reduction", bytes=read, elements=elements)


def _filled(record: Record, kernel: Kernel) -> Iterator[TorchKernel]:
    """Zeros in the shape of the input, and the gradient copied to its place."""
    made = record.tensors[kernel.outputs[0]]
    given = record.tensors[kernel.inputs[0]]
    copied = given if numel(given.shape) > 1 else record.tensors[kernel.inputs[-1]]
    yield TorchKernel(kind="pointwise", bytes=made.nbytes, elements=numel(made.shape))
    elements = numel(copied.shape)
    yield TorchKernel(kind="strided", bytes=2 * elements * made.itemsize, elements=elements)
