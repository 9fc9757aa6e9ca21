"""Number the tensors of a training step without keeping them, and note when nothing refers to them.

On `meta` a storage lives exactly as long as on a device: torch frees it when the last tensor, saved
tensor or buffer of autograd that refers to it is gone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from weakref import ref

import torch

from llmsim_magic.capture.kernels.tensors import TensorTable
from llmsim_magic.records.trace.recorded import Role, Storage


class LiveTensorTable(TensorTable):
    """As `TensorTable`, but holds no storage.

    Args:
        owners: Role and name of storages that are known before the step, by storage address.
        on_free: Called with the number of a storage when nothing refers to it any more, unless it
            is empty.
    """

    def __init__(
        self, owners: Mapping[int, tuple[Role, str]], on_free: Callable[[int], None]
    ) -> None:
        super().__init__(owners)
        self._on_free = on_free
        self._bytes: list[int] = []
        self._living: dict[int, ref[torch.UntypedStorage]] = {}  # by address
        self._uses: list[int] = []  # living storages with each number

    def storage(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor's storage."""
        storage = tensor.untyped_storage()
        number = self._storage_numbers.get(storage._cdata)
        if number is None:
            number = len(self._bytes)
            self._bytes.append(storage.nbytes())
            self._uses.append(0)
            self._add_living(storage, number)
            if storage._cdata in self._owners:
                self._roles[number] = self._owners[storage._cdata]
        return number

    def alias(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Give the storage of `tensor` the number of the storage of `other`."""
        self.forget_layouts()
        number, storage = self.storage(other), tensor.untyped_storage()
        if storage._cdata not in self._storage_numbers:
            self._add_living(storage, number)

    def _add_living(self, storage: torch.UntypedStorage, number: int) -> None:
        address = storage._cdata
        self._uses[number] += 1
        self._storage_numbers[address] = number
        self._living[address] = ref(storage, partial(self._free, address, number))

    def _free(self, address: int, number: int, _: object) -> None:
        del self._living[address], self._storage_numbers[address]
        self._uses[number] -= 1
        if not self._uses[number] and self._bytes[number]:
            self._on_free(number)

    def stop(self) -> None:
        """Note no more of what is freed."""
        self._on_free = _ignore

    def storages(self) -> tuple[Storage, ...]:
        """Return all storages; one without a role is a constant, or an activation if written."""
        found = []
        for number, nbytes in enumerate(self._bytes):
            unnamed: tuple[Role, str | None] = (
                ("activation" if number in self.written else "constant"),
                None,
            )
            role, name = self._roles.get(number, unnamed)
            found.append(Storage(nbytes, role, name))
        return tuple(found)


def _ignore(number: int) -> None:
    """Nothing is noted once the step is over."""
