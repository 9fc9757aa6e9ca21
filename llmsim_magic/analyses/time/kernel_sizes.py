"""The kernels of a trace by their sizes: what the roofline asks for.

Eager runs each ATen kernel by itself. A graph, as a compiler or an engine captures it, runs the
products and attentions of an operator, and all else of it as one kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from llmsim_magic.analyses.cost.traffic import Traffic, kernel_bytes, traffic
from llmsim_magic.analyses.engine.latent_attention import LATENT_ATTENTION
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize, memoize_by_options
from llmsim_magic.analyses.kernels.operator_kinds import recorded_operator_kinds
from llmsim_magic.analyses.parallel.collectives import collective_kind, message_bytes
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Regime
from llmsim_magic.records.hardware.dtypes import BITS, arithmetic
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
    StreamKind,
)
from llmsim_magic.records.trace.recorded import WEIGHT_ROLES, Kernel, Record, Tensor
from llmsim_magic.records.trace.trace import Trace, numel

ATTENTIONS = ("scaled_dot_product_attention", "flex_attention")  # by their short names
_DETACH = "aten.detach.default"
_KINDS: dict[str, StreamKind] = {"normalisation": "normalisation", "embedding": "embedding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDtypes:
    """In what weights and cache are stored, where that is not as traced; `fp8`, `int4` and so on.

    Weights stored as `fp8`, `int8` or `fp4` are multiplied so if `activations` are too, else read
    and widened to the traced dtype. `group` weights share a scale and a zero point of 16 bits each.
    `packed` names the parameters that are so stored, each with the bits of one of its weights,
    scales and zero points included; all others are as traced. Without it every weight is stored
    so.
    """

    weights: str | None = None
    cache: str | None = None
    activations: str | None = None
    group: int | None = None
    packed: Mapping[str, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name in (self.weights, self.cache, self.activations):
            if name is not None and name not in BITS:
                arithmetic(name)

    @property
    def weight_bits(self) -> float | None:
        """Bits of one weight, its share of scales and zero points included."""
        if self.weights is None:
            return None
        return BITS[self.weights] + (32 / self.group if self.group else 0)

    @property
    def multiplied(self) -> str | None:
        """The arithmetic of products with stored weights; None where they are widened."""
        return self.weights if self.activations == self.weights else None

    def bits_of(self, parameter: str) -> float | None:
        """Bits of one weight of a parameter; None where it is as traced."""
        return self.weight_bits if self.packed is None else self.packed.get(parameter)


def kernel_shapes(
    trace: Trace, accelerator: Accelerator, regime: Regime, stored: StoredDtypes | None = None
) -> tuple[tuple[KernelShape, ...], ...]:
    """The kernels of each recorded operator, in order; views are none.

    Raises:
        InvalidValue: If the device does not compute in the dtype that stored weights multiply in.
    """
    stored = stored or StoredDtypes()
    found = recorded_kernel_shapes(trace, regime, stored)
    if stored.multiplied is not None and any(
        isinstance(size, Matmul) and size.weight_bits is not None for each in found for size in each
    ):
        accelerator.peak(stored.multiplied)
    return found


@memoize_by_options
def recorded_kernel_shapes(
    trace: Trace, regime: Regime, stored: StoredDtypes
) -> tuple[tuple[KernelShape, ...], ...]:
    """As `kernel_shapes`, whether or not the device computes in the dtypes."""
    record = trace.recorded
    moved = traffic(record)
    kinds = recorded_operator_kinds(trace)
    found = []
    for order, kernels in enumerate(record.kernels_by_operator):
        worked = [_worked(record, kernel, stored) for kernel in kernels]
        sent = [collective_shape(trace, kernel) for kernel in kernels]
        if regime == "eager":
            each: list[KernelShape | None] = [
                size or _stream(record, kernel)
                for kernel, size in zip(kernels, worked, strict=True)
                if collective_kind(kernel) is None
            ]
        else:
            each = [size for size in worked if size is not None]
            if not each and not any(map(collective_kind, kernels)):
                each = [_fused(record, moved[order], kinds[order])]
        found.append(tuple(size for size in (*each, *sent) if size is not None))
    return tuple(found)


@memoize
def view_counts(trace: Trace) -> tuple[int, ...]:
    """How many views each recorded operator makes.

    Under training, what autograd detaches when it unpacks saved tensors is no call of an operator.
    """
    views = [0] * len(trace.recorded.operators)
    detaches = trace.training is None
    for kernel in trace.recorded.kernels:
        is_call = detaches or kernel.name != _DETACH
        if kernel.is_view and is_call and kernel.operator is not None:
            views[kernel.operator] += 1
    return tuple(views)


def _worked(record: Record, kernel: Kernel, stored: StoredDtypes) -> KernelShape | None:
    """A product or an attention; None for what only streams."""
    if not kernel.flops:
        return None
    if kernel.name == LATENT_ATTENTION:
        return _latent_attention(record, kernel, stored)
    if short_name(kernel.name) in ATTENTIONS:
        return _attention(record, kernel, stored)
    return _matmul(record, kernel, stored)


def collective_shape(trace: Trace, kernel: Kernel) -> Collective | None:
    """An exchange with other devices, None for any other kernel; what is handed on is sent once.

    Handing a tensor to the next device is what a gathering of two does on each of them, somewhere
    along all stages. The devices that share layers are neighbours; ranks of data parallelism, whose
    number the kernel has, are those of all that share the model apart.
    """
    kind = collective_kind(kernel)
    if kind is None or kind == "recv":
        return None
    parallel = trace.model.parallel
    nbytes = message_bytes(trace.recorded, kernel)
    if not nbytes:
        return None  # of a part that another stage holds
    if kind not in ("all_reduce", "all_gather", "reduce_scatter"):
        return Collective("all_gather", 2 * nbytes, 2, span=parallel.ranks)
    if kernel.ranks:
        return Collective(kind, nbytes, kernel.ranks, span=kernel.ranks * parallel.ranks)
    return Collective(kind, nbytes, parallel.width)


def _attention(record: Record, kernel: Kernel, stored: StoredDtypes) -> Attention:
    query, key, value = (record.tensors[index] for index in kernel.inputs[:3])
    *batch, heads, queries, head_dim = query.shape
    kv_heads = key.shape[-3] if len(key.shape) > 2 else 1
    return Attention(
        batch=max(numel(tuple(batch)), 1),
        heads=heads,
        kv_heads=min(kv_heads, heads),
        head_dim=head_dim,
        queries=queries,
        keys=key.shape[-2],
        causal=kernel.causal,
        dtype=_dtype(query),
        kv_dtype=stored.cache or _dtype(key),
        value_dim=value.shape[-1],
    )


def _latent_attention(record: Record, kernel: Kernel, stored: StoredDtypes) -> Attention:
    """Attention over a cached latent: all heads read the same keys, so a head is a query row."""
    query, latent = (record.tensors[index] for index in kernel.inputs[:2])
    batch, heads, queries, head_dim = query.shape
    return Attention(
        batch=max(batch, 1),
        heads=1,
        kv_heads=1,
        head_dim=head_dim,
        queries=heads * queries,
        keys=latent.shape[-2],
        causal=False,
        dtype=_dtype(query),
        kv_dtype=stored.cache or _dtype(latent),
        value_dim=latent.shape[-1],
        is_latent=True,
    )


def _matmul(record: Record, kernel: Kernel, stored: StoredDtypes) -> Matmul:
    """Any kernel that multiplies and adds, as the product of matrices that it comes to."""
    (rows, columns, length), groups = product_shape(record, kernel)
    dtype = _dtype(record.tensors[kernel.outputs[0]])
    weight = stored_weight(record, kernel, stored)
    bits = None if weight is None else weight[1]
    multiplied = None if bits is None else stored.multiplied
    return Matmul(
        m=rows, n=columns, k=length, dtype=multiplied or dtype, groups=groups, weight_bits=bits
    )


def product_shape(record: Record, kernel: Kernel) -> tuple[tuple[int, int, int], int]:
    """Rows, columns and length of the sums of one product of a kernel, and how many there are.

    Rows and columns are the result's; what they leave of the FLOPs is the length of a sum.
    """
    out = record.tensors[kernel.outputs[0]]
    name = short_name(kernel.name)
    products = 1
    if name == "_grouped_mm":
        experts = record.tensors[kernel.inputs[1]].shape[0]
        products = min(out.shape[0], experts)  # routing is balanced: each that runs has its share
    elif name in ("bmm", "baddbmm"):
        products = out.shape[0]
    columns = out.shape[1] if name == "convolution" else out.shape[-1] if out.shape else 1
    elements = max(numel(out.shape), 1)
    columns, products = max(columns, 1), max(products, 1)
    rows = max(-(-elements // (columns * products)), 1)
    length = max(round((kernel.flops or 0) / (2 * elements)), 1)
    return (rows, columns, length), products


def stored_weight(
    record: Record, kernel: Kernel, stored: StoredDtypes
) -> tuple[Tensor, float] | None:
    """The parameter that a product reads, and the bits of one weight; None where it is as traced.

    It is the largest, for a bias may stand beside it.
    """
    read = [record.tensors[index] for index in kernel.inputs]
    weights = [each for each in read if record.storages[each.storage].role in WEIGHT_ROLES]
    if not weights:
        return None
    largest = max(weights, key=lambda each: numel(each.shape))
    name = record.storages[largest.storage].name
    bits = None if name is None else stored.bits_of(name)
    return None if bits is None else (largest, bits)


def _stream(record: Record, kernel: Kernel) -> Stream | None:
    """A kernel that the host starts by itself: all that it reads and writes."""
    nbytes = sum(kernel_bytes(record, kernel))
    name = short_name(kernel.name)
    kind: StreamKind = "elementwise"
    if name in ("embedding", "softmax", "_softmax"):
        kind = "embedding" if name == "embedding" else "softmax"
    elif "norm" in name:
        kind = "normalisation"
    return Stream(kind, nbytes, _rows(record, kernel.outputs)) if nbytes else None


def _fused(record: Record, moved: Traffic, kind: str) -> Stream | None:
    """An operator that streams, as one kernel.

    A cache that grows is written where it stands: a captured graph does not copy what it held.
    """
    grows = kind == "movement"
    reads = [access for access in moved.reads if not (grows and access.role == "cache")]
    nbytes = sum(access.nbytes for access in reads)
    nbytes += nbytes if grows else moved.bytes_written
    written = tuple(access.tensor for access in moved.writes)
    rows = _rows(record, written[:1])
    return Stream(_KINDS.get(kind, "elementwise"), nbytes, rows) if nbytes else None


def _rows(record: Record, tensors: tuple[int, ...]) -> int:
    shape = record.tensors[tensors[0]].shape if tensors else ()
    return max(numel(shape[:-1]), 1)


def _dtype(tensor: Tensor) -> str:
    return compute_dtype(tensor.dtype)


@lru_cache(maxsize=256)
def compute_dtype(dtype: str) -> str:
    """The arithmetic of a dtype; what is none of those is worked on in 32 bits."""
    try:
        return arithmetic(dtype)
    except InvalidValue:
        return "fp32"
