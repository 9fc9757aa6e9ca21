"""The minimum bytes that a kernel or an operator reads and writes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from llmsim_magic.analyses.kernels.aliasing import covers, distinct_elements
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.kernel_arguments import read_arguments
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import WEIGHT_ROLES, Kernel, Record, Role, Tensor
from llmsim_magic.records.trace.trace import numel

_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "_unsafe_index"})
_PICKS = frozenset({"nll_loss_forward", "nll_loss2d_forward"})
_ACCUMULATES = frozenset({"index_add_", "scatter_add_", "scatter_reduce_"})
_WEIGHTS: tuple[Role, ...] = (*WEIGHT_ROLES, "buffer")
_CACHE: tuple[Role, ...] = ("cache",)
_SCATTERS = _ACCUMULATES | {"index_copy_", "index_put_", "_index_put_impl_", "scatter_"}


@dataclass(frozen=True, slots=True)
class Access:
    """One tensor that an operator reads from outside, or writes for later operators."""

    tensor: int
    nbytes: int
    role: Role
    name: str | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Tensors that an operator reads and writes, each once."""

    reads: tuple[Access, ...]
    writes: tuple[Access, ...]

    @property
    def bytes_read(self) -> int:
        return sum(access.nbytes for access in self.reads)

    @property
    def bytes_written(self) -> int:
        return sum(access.nbytes for access in self.writes)

    def with_roles(self, record: Record, roles: Mapping[int, Role]) -> "Traffic":
        """The same accesses with other roles for some storages, by storage index."""

        def relabel(access: Access) -> Access:
            role = roles.get(record.tensors[access.tensor].storage, access.role)
            return replace(access, role=role)

        return Traffic(tuple(map(relabel, self.reads)), tuple(map(relabel, self.writes)))

    @property
    def bytes_weights(self) -> int:
        """Bytes of parameters and buffers, read or written."""
        return self._bytes_of(_WEIGHTS)

    @property
    def bytes_cache(self) -> int:
        """Bytes of the cache or recurrent state, read or written."""
        return self._bytes_of(_CACHE)

    @property
    def bytes_activations(self) -> int:
        """All other bytes: activations, inputs and constants, read or written."""
        return self.bytes_read + self.bytes_written - self.bytes_weights - self.bytes_cache

    def _bytes_of(self, roles: Collection[Role]) -> int:
        accesses = (*self.reads, *self.writes)
        return sum(access.nbytes for access in accesses if access.role in roles)


def kernel_bytes(record: Record, kernel: Kernel) -> tuple[int, int]:
    """Bytes one kernel reads and writes; each argument and each result counts once."""
    if kernel.is_view:
        return 0, 0
    places = {kernel.inputs[place]: place for place in read_arguments(kernel)}
    read = sum(_bytes_of_input(record, kernel, place) for place in places.values())
    written = sum(_bytes_of_write(record, kernel, index) for index in dict.fromkeys(kernel.writes))
    return read, written


@memoize
def traffic(record: Record) -> tuple[Traffic, ...]:
    """The minimum traffic of each operator.

    Each input and weight is read once and each output written once. Intermediate tensors of the
    operator do not count. A lookup reads only the selected rows, a scatter writes only the given
    rows, and a grouped matmul reads at most one expert per row.

    Returns:
        One `Traffic` per recorded operator, in execution order.
    """
    last_read = _last_reads(record)
    preexisting = {n for n, storage in enumerate(record.storages) if storage.role != "activation"}
    found = []
    for order, kernels in enumerate(record.kernels_by_operator):
        fresh: dict[int, list[Tensor]] = {}
        reads: dict[tuple[int, int, int], Access] = {}
        writes: dict[tuple[int, int, int], Access] = {}
        for kernel in kernels:
            for place in read_arguments(kernel):
                tensor = record.tensors[kernel.inputs[place]]
                own_regions = fresh.get(tensor.storage, ())
                is_intermediate = own_regions and tensor.storage not in preexisting
                if not is_intermediate and not any(
                    covers(region, tensor) for region in own_regions
                ):
                    nbytes = _bytes_of_input(record, kernel, place)
                    _add_access(reads, record, kernel.inputs[place], nbytes)
            for index in kernel.writes:
                tensor = record.tensors[index]
                fresh.setdefault(tensor.storage, []).append(tensor)
                if _outlives(record, tensor.storage, order, last_read):
                    _add_access(writes, record, index, _bytes_of_write(record, kernel, index))
        preexisting |= fresh.keys()
        found.append(
            Traffic(_cap_at_storage_size(record, reads), _cap_at_storage_size(record, writes))
        )
    return tuple(found)


def _bytes_of_input(record: Record, kernel: Kernel, place: int) -> int:
    """Bytes a kernel reads of one argument: only selected rows of a table, only active experts."""
    name = short_name(kernel.name)
    tensor = record.tensors[kernel.inputs[place]]
    nbytes = _nbytes(tensor)
    if place == 0 and name in _GATHERS and kernel.outputs:
        return min(nbytes, _nbytes(record.tensors[kernel.outputs[0]]))
    if place == 0 and name in _SCATTERS:
        return min(nbytes, _scatter_source_bytes(record, kernel)) if name in _ACCUMULATES else 0
    if place == 0 and name in _PICKS:  # one score of each row
        return min(nbytes, numel(record.tensors[kernel.inputs[1]].shape) * tensor.itemsize)
    if place == 1 and name == "_grouped_mm":
        rows, groups = record.tensors[kernel.inputs[0]].shape[0], tensor.shape[0]
        return nbytes // groups * min(rows, groups)
    return nbytes


def _bytes_of_write(record: Record, kernel: Kernel, index: int) -> int:
    """Bytes a kernel writes of one tensor: a scatter writes only its source rows."""
    nbytes = _nbytes(record.tensors[index])
    if short_name(kernel.name) in _SCATTERS:
        return min(nbytes, _scatter_source_bytes(record, kernel))
    return nbytes


def _scatter_source_bytes(record: Record, kernel: Kernel) -> int:
    return _nbytes(record.tensors[kernel.inputs[-1]])


def _nbytes(tensor: Tensor) -> int:
    return distinct_elements(tensor) * tensor.itemsize


def _add_access(
    accesses: dict[tuple[int, int, int], Access], record: Record, index: int, nbytes: int
) -> None:
    tensor = record.tensors[index]
    storage = record.storages[tensor.storage]
    key = (tensor.storage, tensor.offset, nbytes)
    accesses.setdefault(key, Access(index, nbytes, storage.role, storage.name))


def _cap_at_storage_size(
    record: Record, accesses: dict[tuple[int, int, int], Access]
) -> tuple[Access, ...]:
    """Limit the bytes of overlapping views so that no storage is moved more than once."""
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


def _last_reads(record: Record) -> dict[int, int]:
    """The last operator that reads each storage; past the end for results of the pass."""
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


def _outlives(record: Record, storage: int, order: int, last_read: dict[int, int]) -> bool:
    return record.storages[storage].role != "activation" or last_read.get(storage, -1) > order
