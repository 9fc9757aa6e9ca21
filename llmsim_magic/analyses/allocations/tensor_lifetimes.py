"""Tensor lifetimes, and the peak of bytes alive at once."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

from msgspec import Struct

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Record, Role
from llmsim_magic.records.trace.trace import Trace

_ACTIVATION: tuple[Role, ...] = ("activation",)


class Lifetime(Struct, frozen=True, gc=False):
    """A storage, and the first and last kernel during which it is alive."""

    storage: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes alive at once, and the operator that runs then; None after the last one."""

    nbytes: int
    operator: int | None


def peak_activations(trace: Trace) -> Peak:
    """Peak bytes of activations: what the pass allocates, without the cache."""
    return peak_of_record(trace.unrolled)


def operator_name(record: Record, order: int) -> str:
    """An operator as a sentence names it: the path of a module, or a function after its module."""
    operator = record.operators[order]
    is_module = operator.kind == "module"
    return operator.path if is_module else f"{operator.path}:{operator.op}".removeprefix(":")


@memoize
def peak_of_record(record: Record) -> Peak:
    """As `peak_activations`, of a record without replayed layers."""
    return _peak(record, lifetimes(record, _ACTIVATION))


@memoize
def peak_with_cache(trace: Trace) -> Peak:
    """Peak bytes of activations and cache, as an allocator counts them."""
    return _peak(trace.unrolled, lifetimes(trace.unrolled, (*_ACTIVATION, "cache")))


@memoize
def alive_by_operator(trace: Trace) -> tuple[int, ...]:
    """For each operator the most bytes of activations that are allocated while it runs.

    Returns:
        Bytes by order; 0 for an operator that runs no kernel.
    """
    record = trace.unrolled
    alive = _alive(record, lifetimes(record, _ACTIVATION))
    most = [0] * len(record.operators)
    for kernel, nbytes in zip(record.kernels, alive, strict=False):
        if kernel.operator is not None:
            most[kernel.operator] = max(most[kernel.operator], nbytes)
    return tuple(most)


def lifetimes(record: Record, roles: Collection[Role]) -> tuple[Lifetime, ...]:
    """The lifetimes of all storages of these roles that the pass allocates.

    A storage is allocated when a kernel first writes it. It is freed after the last kernel that
    uses it or runs while Python references it: a call references its arguments, the functions that
    run their local variables. Results and the cache outlive the pass.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    preexisting: set[int] = set()  # read before the pass wrote it, so not allocated by it
    storage_of = [tensor.storage for tensor in record.tensors]
    for place, kernel in enumerate(record.kernels):
        written = {storage_of[index] for index in kernel.outputs}
        if kernel.writes != kernel.outputs:
            written.update([storage_of[index] for index in kernel.writes])
        for index in kernel.inputs:
            storage = storage_of[index]
            if storage not in first and storage not in written:
                preexisting.add(storage)
            last[storage] = place
        for storage in written:
            if storage not in first and storage not in preexisting:
                first[storage] = place
            last[storage] = place
        for index in kernel.held:
            last[storage_of[index]] = place
    for storage, place in _referenced(record):
        last[storage] = max(last.get(storage, place), place)
    end = len(record.kernels)
    for index in record.results:
        last[record.tensors[index].storage] = end
    return tuple(
        Lifetime(
            number,
            storage.nbytes,
            first[number],
            end if storage.role == "cache" else last[number],
        )
        for number, storage in enumerate(record.storages)
        if storage.role in roles and number in first
    )


def _referenced(record: Record) -> Iterator[tuple[int, int]]:
    """Storages that calls reference, each with the last kernel of the call."""
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


def _alive(record: Record, found: tuple[Lifetime, ...]) -> list[int]:
    """The bytes alive during each kernel, and after the last one."""
    changes = [0] * (len(record.kernels) + 2)
    for lifetime in found:
        changes[lifetime.first] += lifetime.nbytes
        changes[lifetime.last + 1] -= lifetime.nbytes
    return list(accumulate(changes))


def _peak(record: Record, found: tuple[Lifetime, ...]) -> Peak:
    alive = _alive(record, found)
    place = max(range(len(alive)), key=alive.__getitem__)
    if place >= len(record.kernels):
        return Peak(alive[place], None)
    return Peak(alive[place], record.kernels[place].operator)
