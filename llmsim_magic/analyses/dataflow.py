"""What each operator waits for: it reads a tensor that another wrote."""

from dataclasses import dataclass

from llmsim_magic.analyses.once import once
from llmsim_magic.analyses.reads import read_places
from llmsim_magic.analyses.regions import covers, overlap
from llmsim_magic.records.trace import Tensor, Trace


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` reads `tensor`, which `source` wrote; `through` names the cache slot it lies in."""

    source: int
    target: int
    tensor: int
    through: str | None


@once
def edges(trace: Trace) -> tuple[Edge, ...]:
    """Every dependency between operators, by target and then source.

    Views are followed by their storage, in-place writes by the region they touch. A call that
    runs no kernel (dropout in inference) waits for whoever wrote what it was handed.
    """
    writers: dict[int, list[tuple[int, Tensor]]] = {}
    found: dict[tuple[int, int, int], None] = {}
    handed = _handed(trace)
    kernels_of = trace.kernels_of
    for order, operator in enumerate(trace.operators):
        if not kernels_of[order]:
            for index in operator.inputs:
                for writer in _writers_of(writers, trace.tensors[index]):
                    found[order, writer, index] = None
        for kernel in kernels_of[order]:
            for place in read_places(kernel):
                index = kernel.inputs[place]
                tensor = trace.tensors[index]
                for writer in _writers_of(writers, tensor):
                    if writer != order:
                        found[order, writer, _as_handed(trace, handed[order], index)] = None
            for index in kernel.writes:
                _write(writers, order, trace.tensors[index])
    return tuple(
        Edge(source, target, index, _through(trace, index))
        for target, source, index in sorted(found)
    )


@once
def depends_on(trace: Trace) -> tuple[tuple[int, ...], ...]:
    """For each operator the orders of those that it waits for, ascending."""
    sources: list[dict[int, None]] = [{} for _ in trace.operators]
    for edge in edges(trace):
        sources[edge.target][edge.source] = None
    return tuple(tuple(sorted(found)) for found in sources)


def ranks(trace: Trace) -> tuple[int, ...]:
    """The length of the longest chain that each operator waits for: equal ranks may run at once."""
    found: list[int] = []
    for sources in depends_on(trace):
        found.append(1 + max((found[source] for source in sources), default=-1))
    return tuple(found)


def _writers_of(writers: dict[int, list[tuple[int, Tensor]]], tensor: Tensor) -> list[int]:
    """Whose writes a reader sees: from the latest back to one that covers all that is read."""
    seen = []
    for order, region in reversed(writers.get(tensor.storage, ())):
        if overlap(region, tensor):
            seen.append(order)
            if covers(region, tensor):
                break
    return seen


def _write(writers: dict[int, list[tuple[int, Tensor]]], order: int, tensor: Tensor) -> None:
    """Remember a write; one of all that was written before hides it."""
    known = writers.setdefault(tensor.storage, [])
    if known and covers(tensor, known[0][1]) and all(covers(tensor, r) for _, r in known):
        known.clear()
    known.append((order, tensor))


def _handed(trace: Trace) -> list[dict[int, list[int]]]:
    """For each operator the tensors it was handed in each storage, as its author sees them."""
    found = []
    for operator in trace.operators:
        by_storage: dict[int, list[int]] = {}
        for index in operator.inputs:
            by_storage.setdefault(trace.tensors[index].storage, []).append(index)
        found.append(by_storage)
    return found


def _as_handed(trace: Trace, handed: dict[int, list[int]], index: int) -> int:
    """The tensor that a kernel reads, as the operator was handed it where it was."""
    tensor = trace.tensors[index]
    candidates = handed.get(tensor.storage, [])
    if index in candidates:
        return index
    return next((c for c in candidates if covers(trace.tensors[c], tensor)), index)


def _through(trace: Trace, index: int) -> str | None:
    storage = trace.storages[trace.tensors[index].storage]
    return storage.name if storage.role == "cache" else None
