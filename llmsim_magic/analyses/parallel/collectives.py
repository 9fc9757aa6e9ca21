"""Collectives of a pass and the bytes they transfer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmsim_magic.analyses.kernels.aliasing import distinct_elements
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import Trace

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "send", "recv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective, or point-to-point transfer, between `ranks` devices.

    `order` is that of its operator. `nbytes` is the size of the tensors that are reduced, gathered
    (as they are afterwards) or sent, and `shape` that of the first. `wire_bytes` is what each rank
    sends under ring algorithms.
    """

    order: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    ranks: int
    nbytes: int
    wire_bytes: int


def _ring_all_reduce(nbytes: int, ranks: int) -> int:
    """A ring all-reduce sends 2 · (n − 1) / n of the tensor from each rank."""
    return 2 * (ranks - 1) * nbytes // ranks


def _ring_all_gather(nbytes: int, ranks: int) -> int:
    """A ring all-gather sends (n − 1) / n of the tensor from each rank."""
    return (ranks - 1) * nbytes // ranks


def _ring_reduce_scatter(nbytes: int, ranks: int) -> int:
    """A ring reduce-scatter sends (n − 1) / n of the tensor from each rank."""
    return (ranks - 1) * nbytes // ranks


def _point_to_point(nbytes: int, ranks: int) -> int:
    """A transfer to the next rank sends the whole tensor."""
    return nbytes


_KINDS: dict[str, tuple[Kind, Callable[[int, int], int]]] = {
    "allreduce_": ("all_reduce", _ring_all_reduce),
    "allgather_": ("all_gather", _ring_all_gather),
    "_allgather_base_": ("all_gather", _ring_all_gather),
    "_reduce_scatter_base_": ("reduce_scatter", _ring_reduce_scatter),
    "send": ("send", _point_to_point),
    "recv_": ("recv", _point_to_point),
}


def collective_kind(kernel: Kernel) -> Kind | None:
    """What a kernel exchanges, such as `all_reduce` or `send`; None if it does not communicate."""
    if not kernel.name.startswith("c10d."):
        return None
    return _KINDS[short_name(kernel.name)][0]


@memoize
def collectives(trace: Trace) -> tuple[Collective, ...]:
    """Every collective of the pass, in execution order; empty on one device."""
    record = trace.unrolled
    return tuple(
        _collective(record, kernel, trace.model.parallel.width)
        for kernel in record.kernels
        if collective_kind(kernel) is not None
    )


def message_bytes(record: Record, kernel: Kernel) -> int:
    """Bytes of what is reduced, gathered (as it is afterwards) or sent."""
    tensors = (record.tensors[index] for index in _message(kernel))
    return sum(distinct_elements(tensor) * tensor.itemsize for tensor in tensors)


def _message(kernel: Kernel) -> tuple[int, ...]:
    is_scattered = collective_kind(kernel) == "reduce_scatter"
    return kernel.inputs if is_scattered else kernel.outputs or kernel.inputs


def _collective(record: Record, kernel: Kernel, width: int) -> Collective:
    kind, wire_bytes = _KINDS[short_name(kernel.name)]
    tensor = record.tensors[_message(kernel)[0]]
    nbytes = message_bytes(record, kernel)
    ranks = 2 if kind in ("send", "recv") else kernel.ranks or width
    assert kernel.operator is not None  # noqa: S101 - an operator issues every collective
    return Collective(
        order=kernel.operator,
        kind=kind,
        shape=tensor.shape,
        dtype=tensor.dtype,
        ranks=ranks,
        nbytes=nbytes,
        wire_bytes=wire_bytes(nbytes, ranks),
    )
