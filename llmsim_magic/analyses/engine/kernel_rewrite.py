"""Replace kernels of a record by others, without moving the kernels that stay."""

from collections.abc import Iterable
from dataclasses import replace

from msgspec.structs import replace as struct_replace

from llmsim_magic.records.trace.recorded import Kernel, Record, Role, Storage, Tensor
from llmsim_magic.records.trace.trace import numel


class KernelRewrite:
    """A record under rewrite, with the kernels that write, read and view each storage.

    A removed kernel becomes a view without arguments, which costs nothing, so that indices of
    kernels, and with them replayed layers, stay valid.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.kernels: list[Kernel] = list(record.kernels)
        self.tensors: list[Tensor] = list(record.tensors)
        self.storages: list[Storage] = list(record.storages)
        self.results = {record.tensors[index].storage for index in record.results}
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        self.views: dict[int, list[int]] = {}
        for place, kernel in enumerate(record.kernels):
            written = {*kernel.outputs, *kernel.writes}
            if kernel.is_view:
                self._note(self.views, place, written)
            else:
                self._note(self.writers, place, written)
                self._note(self.readers, place, set(kernel.inputs) - written)

    def _note(self, table: dict[int, list[int]], place: int, tensors: Iterable[int]) -> None:
        for storage in {self.tensors[index].storage for index in tensors}:
            table.setdefault(storage, []).append(place)

    def written_storages(self, place: int) -> set[int]:
        """The storages that a kernel writes."""
        kernel = self.kernels[place]
        return {self.tensors[index].storage for index in (*kernel.outputs, *kernel.writes)}

    def read_storages(self, place: int) -> set[int]:
        """The storages that a kernel reads, without those it writes."""
        kernel = self.kernels[place]
        return {self.tensors[index].storage for index in kernel.inputs} - self.written_storages(
            place
        )

    def role(self, tensor: int) -> Role:
        """The role of a tensor's storage."""
        return self.storages[self.tensors[tensor].storage].role

    def has_role(self, place: int, role: Role) -> bool:
        """Whether a kernel has an argument of this role."""
        return any(self.role(index) == role for index in self.kernels[place].inputs)

    def are_internal(self, inner: set[int], users: set[int]) -> bool:
        """Whether `users` alone read what the kernels `inner` write, none of it a result."""
        for place in inner:
            for storage in self.written_storages(place):
                if storage in self.results or self.storages[storage].role != "activation":
                    return False
                if not users.issuperset(self.readers.get(storage, ())):
                    return False
        return True

    def add_tensor(self, shape: tuple[int, ...], like: Tensor, storage: int) -> int:
        """A contiguous tensor of `like`'s dtype at its offset; returns its index."""
        strides = []
        step = 1
        for size in reversed(shape):
            strides.append(step)
            step *= size
        self.tensors.append(
            Tensor(shape, like.dtype, like.itemsize, storage, like.offset, tuple(strides[::-1]))
        )
        return len(self.tensors) - 1

    def add_result(self, shape: tuple[int, ...], like: Tensor, role: Role = "activation") -> int:
        """A tensor of `like`'s dtype in a storage of its own; returns its index."""
        self.storages.append(Storage(numel(shape) * like.itemsize, role, None))
        return self.add_tensor(shape, struct_replace(like, offset=0), len(self.storages) - 1)

    def remove(self, places: Iterable[int]) -> None:
        """Remove kernels, and the views of what they alone wrote."""
        gone = set(places)
        written = {storage for place in gone for storage in self.written_storages(place)}
        left = {storage for storage in written if not gone.issuperset(self.writers[storage])}
        self._empty(gone)
        self._empty(
            place
            for storage in written - left
            for place in self.views.get(storage, ())
            if self.kernels[place].is_view
        )

    def _empty(self, places: Iterable[int]) -> None:
        for place in places:
            kernel = self.kernels[place]
            self.kernels[place] = Kernel(
                kernel.name, kernel.operator, (), (), (), True, False, False, None
            )

    def rewritten(self) -> Record:
        """The record with its new kernels."""
        return replace(
            self.record,
            kernels=tuple(self.kernels),
            tensors=tuple(self.tensors),
            storages=tuple(self.storages),
        )
