"""What ranks hand each other in a pass, and the bytes of it."""

from collections.abc import Callable
from dataclasses import dataclass

from llmsim_magic.analyses.kernels.aliasing import distinct_elements
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Collective:
    """An exchange of `ranks` devices, in the operator of this order.

    `nbytes` is the whole: what is summed, what all have after gathering, or what is handed on.
    `wire_bytes` leave each rank, by the ring algorithms.
    """

    order: int
    kind: str
    shape: tuple[int, ...]
    dtype: str
    ranks: int
    nbytes: int
    wire_bytes: int


def _reduced(nbytes: int, ranks: int) -> int:
    """A ring passes each of `ranks` parts on twice but for one: 2 · (n − 1) / n of the whole."""
    return 2 * (ranks - 1) * nbytes // ranks


def _gathered(nbytes: int, ranks: int) -> int:
    """Each rank passes on all parts but one: (n − 1) / n of the whole."""
    return (ranks - 1) * nbytes // ranks


def _handed(nbytes: int, ranks: int) -> int:
    """From one to the next: all of it."""
    return nbytes


_KINDS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "allreduce_": ("all_reduce", _reduced),
    "allgather_": ("all_gather", _gathered),
    "send": ("send", _handed),
    "recv_": ("recv", _handed),
}


def collective_kind(kernel: Kernel) -> str | None:
    """`all_reduce`, `all_gather`, `send` or `recv`; None for a kernel of one device's own."""
    if not kernel.name.startswith("c10d."):
        return None
    return _KINDS[short_name(kernel.name)][0]


@memoize
def collectives(trace: Trace) -> tuple[Collective, ...]:
    """Every exchange of the pass, in order; none on one device."""
    record = trace.unrolled
    return tuple(
        _collective(record, kernel, trace.model.parallel.width)
        for kernel in record.kernels
        if collective_kind(kernel) is not None
    )


def _collective(record: Record, kernel: Kernel, width: int) -> Collective:
    kind, on_wire = _KINDS[short_name(kernel.name)]
    tensor = record.tensors[(kernel.outputs or kernel.inputs)[0]]
    nbytes = distinct_elements(tensor) * tensor.itemsize
    ranks = width if kind.startswith("all_") else 2
    assert kernel.operator is not None  # noqa: S101 - each is an operator's own kernel
    return Collective(
        kernel.operator,
        kind,
        tensor.shape,
        tensor.dtype,
        ranks,
        nbytes,
        on_wire(nbytes, ranks),
    )
