"""The least bytes that a kernel or an operator must move."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from llmsim_magic.analyses.kernels.aliasing import covers, distinct_elements
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.kernel_arguments import read_arguments
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel, Record, Role, Tensor

_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "_unsafe_index"})
_ACCUMULATES = frozenset({"index_add_", "scatter_add_", "scatter_reduce_"})
_WEIGHTS: tuple[Role, ...] = ("parameter", "buffer")
_CACHE: tuple[Role, ...] = ("cache",)
_SCATTERS = _ACCUMULATES | {"index_copy_", "index_put_", "_index_put_impl_", "scatter_"}


@dataclass(frozen=True, slots=True)
class Access:
    """One tensor that crosses an operator's border: read once or written once."""

    tensor: int
    nbytes: int
    role: Role
    name: str | None


@dataclass(frozen=True, slots=True)
class Traffic:
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]

    @property
    def bytes_read(self) -> int:
        return sum(access.nbytes for access in self.reads)

    @property
    def bytes_written(self) -> int:
        return sum(access.nbytes for access in self.writes)

    def as_if(self, record: Record, roles: Mapping[int, Role]) -> "Traffic":
        """The same were the storages of those numbers something else."""

        def seen(access: Access) -> Access:
            role = roles.get(record.tensors[access.tensor].storage, access.role)
            return replace(access, role=role)

        return Traffic(tuple(map(seen, self.reads)), tuple(map(seen, self.writes)))

    @property
    def bytes_weights(self) -> int:
        """Of all bytes moved those of parameters and buffers."""
        return self._of(_WEIGHTS)

    @property
    def bytes_cache(self) -> int:
        """Of all bytes moved those of the cache or state, read or written."""
        return self._of(_CACHE)

    @property
    def bytes_activations(self) -> int:
        """All others: what operators hand each other, inputs and constants."""
        return self.bytes_read + self.bytes_written - self.bytes_weights - self.bytes_cache

    def _of(self, roles: Collection[Role]) -> int:
        accesses = (*self.reads, *self.writes)
        return sum(access.nbytes for access in accesses if access.role in roles)


def kernel_bytes(record: Record, kernel: Kernel) -> tuple[int, int]:
    """Bytes read and written by one kernel: each argument once, each result once."""
    if kernel.is_view:
        return 0, 0
    places = {kernel.inputs[place]: place for place in read_arguments(kernel)}
    read = sum(_bytes_of_input(record, kernel, place) for place in places.values())
    written = sum(_bytes_of_write(record, kernel, index) for index in dict.fromkeys(kernel.writes))
    return read, written


@memoize
def traffic(record: Record) -> tuple[Traffic, ...]:
    """For each operator what it reads from outside and what it leaves behind.

    Each input and weight is read once, each output written once; what is made and used up inside
    the operator does not count. A lookup reads only the rows it looks up, a scatter writes only
    those it is given, and of grouped experts at most one for each row is read.
    """
    needed = _needed_later(record)
    older = {n for n, storage in enumerate(record.storages) if storage.role != "activation"}
    found = []
    for order, kernels in enumerate(record.kernels_by_operator):
        fresh: dict[int, list[Tensor]] = {}
        reads: dict[tuple[int, int, int], Access] = {}
        writes: dict[tuple[int, int, int], Access] = {}
        for kernel in kernels:
            for place in read_arguments(kernel):
                tensor = record.tensors[kernel.inputs[place]]
                own = fresh.get(tensor.storage, ())
                fresh_whole = own and tensor.storage not in older
                if not fresh_whole and not any(covers(region, tensor) for region in own):
                    nbytes = _bytes_of_input(record, kernel, place)
                    _keep(reads, record, kernel.inputs[place], nbytes)
            for index in kernel.writes:
                tensor = record.tensors[index]
                fresh.setdefault(tensor.storage, []).append(tensor)
                if _outlives(record, tensor.storage, order, needed):
                    _keep(writes, record, index, _bytes_of_write(record, kernel, index))
        older |= fresh.keys()
        found.append(Traffic(_capped(record, reads), _capped(record, writes)))
    return tuple(found)


def _bytes_of_input(record: Record, kernel: Kernel, place: int) -> int:
    """What a kernel reads of one argument: of a table the rows looked up, of experts those run."""
    name = short_name(kernel.name)
    tensor = record.tensors[kernel.inputs[place]]
    nbytes = _nbytes(tensor)
    if place == 0 and name in _GATHERS and kernel.outputs:
        return min(nbytes, _nbytes(record.tensors[kernel.outputs[0]]))
    if place == 0 and name in _SCATTERS:
        return min(nbytes, _scattered(record, kernel)) if name in _ACCUMULATES else 0
    if place == 1 and name == "_grouped_mm":
        rows, groups = record.tensors[kernel.inputs[0]].shape[0], tensor.shape[0]
        return nbytes // groups * min(rows, groups)
    return nbytes


def _bytes_of_write(record: Record, kernel: Kernel, index: int) -> int:
    """A scatter writes as much as it is given, not the whole of what it writes into."""
    nbytes = _nbytes(record.tensors[index])
    if short_name(kernel.name) in _SCATTERS:
        return min(nbytes, _scattered(record, kernel))
    return nbytes


def _scattered(record: Record, kernel: Kernel) -> int:
    return _nbytes(record.tensors[kernel.inputs[-1]])


def _nbytes(tensor: Tensor) -> int:
    return distinct_elements(tensor) * tensor.itemsize


def _keep(
    accesses: dict[tuple[int, int, int], Access], record: Record, index: int, nbytes: int
) -> None:
    tensor = record.tensors[index]
    storage = record.storages[tensor.storage]
    key = (tensor.storage, tensor.offset, nbytes)
    accesses.setdefault(key, Access(index, nbytes, storage.role, storage.name))


def _capped(record: Record, accesses: dict[tuple[int, int, int], Access]) -> tuple[Access, ...]:
    """No storage is moved more than once whole, however many overlapping views are used."""
    left: dict[int, int] = {}
    moved: dict[tuple[int, int, int], int] = {}
    for key in sorted(accesses, key=lambda key: -key[2]):
        storage, _, nbytes = key
        rest = left.setdefault(storage, record.storages[storage].nbytes)
        moved[key] = min(nbytes, rest)
        left[storage] = rest - moved[key]
    return tuple(
        Access(access.tensor, moved[key], access.role, access.name)
        for key, access in accesses.items()
        if moved[key]
    )


def _needed_later(record: Record) -> dict[int, int]:
    """The last operator that reads each storage; one past the end for the pass's own results."""
    last: dict[int, int] = {}
    end = len(record.operators)
    for kernel in record.kernels:
        if kernel.operator is not None:
            for index in kernel.inputs:
                storage = record.tensors[index].storage
                last[storage] = max(last.get(storage, 0), kernel.operator)
    for order, operator in enumerate(record.operators):
        for index in operator.outputs:
            storage = record.tensors[index].storage
            last[storage] = max(last.get(storage, 0), order + 1)
    for index in record.results:
        last[record.tensors[index].storage] = end
    return last


def _outlives(record: Record, storage: int, order: int, needed: dict[int, int]) -> bool:
    return record.storages[storage].role != "activation" or needed.get(storage, -1) > order
