"""How long each tensor of a pass lives, and how much is alive at once."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Record, Role
from llmsim_magic.records.trace.trace import Trace

_MADE: tuple[Role, ...] = ("activation",)


@dataclass(frozen=True, slots=True)
class Life:
    """A storage, and the kernels from whose start to whose end it is alive."""

    storage: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes alive at once, and the operator during which they are."""

    nbytes: int
    operator: int | None


@memoize
def peak_activations(trace: Trace) -> Peak:
    """The most that activations take at once: what the pass makes and does not keep as a cache."""
    return _peak(trace.unrolled, lives(trace.unrolled, _MADE))


@memoize
def peak_of_all_made(trace: Trace) -> Peak:
    """The same with what the pass writes into its cache or state, as an allocator sees it."""
    return _peak(trace.unrolled, lives(trace.unrolled, (*_MADE, "cache")))


def lives(record: Record, roles: Collection[Role]) -> tuple[Life, ...]:
    """The lives of all storages of these roles that the pass makes.

    A storage is made when a kernel first writes it, and freed after the last kernel that touches
    it, or during which it is held: a call holds its arguments, and its caller what it has names
    for. What the pass returns, and its cache, outlive it.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    found_before: set[int] = set()  # read before it was written: somebody else's
    for place, kernel in enumerate(record.kernels):
        written = {record.tensors[index].storage for index in (*kernel.writes, *kernel.outputs)}
        for index in kernel.inputs:
            storage = record.tensors[index].storage
            if storage not in first and storage not in written:
                found_before.add(storage)
            last[storage] = place
        for storage in written:
            if storage not in found_before:
                first.setdefault(storage, place)
            last[storage] = place
    for storage, place in _held(record):
        last[storage] = max(last.get(storage, place), place)
    end = len(record.kernels)
    for index in record.results:
        last[record.tensors[index].storage] = end
    return tuple(
        Life(
            number,
            storage.nbytes,
            first[number],
            end if storage.role == "cache" else last[number],
        )
        for number, storage in enumerate(record.storages)
        if storage.role in roles and number in first
    )


def _held(record: Record) -> Iterator[tuple[int, int]]:
    """Storages that an operator or module was handed, or its caller holds, with its last kernel."""
    ends: dict[int, int] = {}  # the last kernel of each operator
    for place, kernel in enumerate(record.kernels):
        if kernel.operator is not None:
            ends[kernel.operator] = place
    ends_below: dict[str, int] = {}
    for order, operator in enumerate(record.operators):
        end = ends.get(order)
        if end is None:
            continue
        for index in (*operator.inputs, *operator.held):
            yield record.tensors[index].storage, end
        path: str = operator.path
        while path:
            ends_below[path] = end
            path = path.rpartition(".")[0]
    for calls in record.calls:
        if calls.number == 1 and calls.path in ends_below:
            for index in (*calls.inputs, *calls.held):
                yield record.tensors[index].storage, ends_below[calls.path]


def _peak(record: Record, found: tuple[Life, ...]) -> Peak:
    changes = [0] * (len(record.kernels) + 2)
    for life in found:
        changes[life.first] += life.nbytes
        changes[life.last + 1] -= life.nbytes
    alive = list(accumulate(changes))
    place = max(range(len(alive)), key=alive.__getitem__)
    if place >= len(record.kernels):
        return Peak(alive[place], None)
    return Peak(alive[place], record.kernels[place].operator)
