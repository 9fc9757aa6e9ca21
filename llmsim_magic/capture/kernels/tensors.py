"""Give every tensor of a forward pass a number, by what it is: storage, offset, shape, strides."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from llmsim_magic.records.trace.recorded import Role, Storage, Tensor

# While open, torch's function modes do not hear what is asked of a tensor.
unrecorded = torch._C.DisableTorchFunction

_DTYPE_NAMES: dict[torch.dtype, str] = {}


def dtype_name(dtype: torch.dtype) -> str:
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        name = _DTYPE_NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


_PLAIN = frozenset({str, bytes, int, float, bool, type, type(None), torch.dtype, torch.device})
_DEEPEST = 8


def values_in(tensor: torch.Tensor) -> bytes:
    """The values of a tensor on the host, as bytes; nobody hears of it."""
    with torch._C._DisableTorchDispatch():
        flat = tensor.detach().contiguous().reshape(-1)
        return bytes(flat.view(torch.uint8).numpy().tobytes())


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, in order."""
    found: list[torch.Tensor] = []
    _collect(value, found, 0)
    return found


def _collect(value: Any, found: list[torch.Tensor], depth: int) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif type(value) not in _PLAIN and depth <= _DEEPEST:
        for _, item in _items(value):
            _collect(item, found, depth + 1)


def named_tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """The same with each tensor's path; objects that merely hold tensors are not entered."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif type(value) not in _PLAIN and depth <= _DEEPEST:
        for key, item in _items(value):
            yield from named_tensors(f"{name}.{key}", item, depth + 1)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What a collection or a dataclass holds; nothing of anything else."""
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value) and not hasattr(value, "model_type"):  # no config
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return ()


def held_tensors(
    name: str, value: Any, seen: set[int] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a cache or state object holds, in whatever attributes it keeps them."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, torch.nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, (tuple, list)):
        children = list(enumerate(value))
    else:
        children = list(getattr(value, "__dict__", {}).items())
    for key, child in children:
        yield from held_tensors(f"{name}.{key}", child, seen)


class TensorTable:
    """Numbers for tensors and the storages they look into.

    Storages are kept alive as long as the table, so that no two are ever taken for one;
    on `meta` they hold no memory.
    """

    def __init__(self, owners: Mapping[int, tuple[Role, str]] | None = None) -> None:
        """`owners` says whose some storages are, by address, before any is met."""
        self.tensors: list[Tensor] = []
        self._owners = owners or {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._storages: list[torch.UntypedStorage] = []
        self._kept: list[torch.UntypedStorage] = []
        self._storage_numbers: dict[int, int] = {}
        self._roles: dict[int, tuple[Role, str | None]] = {}
        self.written: set[int] = set()

    def add(self, tensor: torch.Tensor) -> int:
        storage = self.storage(tensor)
        shape = tuple(tensor.shape)
        strides = tensor.stride()
        offset = int(tensor.storage_offset())
        key = (storage, offset, shape, strides, tensor.dtype)
        number = self._numbers.get(key)
        if number is None:
            if not all(type(size) is int for size in shape):
                raise TypeError("sizes that are traced: torch.jit.trace or export runs within it")
            number = self._numbers[key] = len(self.tensors)
            name = dtype_name(tensor.dtype)
            self.tensors.append(
                Tensor(shape, name, tensor.dtype.itemsize, storage, offset, tuple(strides))
            )
        return number

    def add_all(self, value: Any) -> tuple[int, ...]:
        """Numbers of all tensors in a value; what `torch.vmap` wraps has no storage of its own."""
        is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        return tuple([self.add(tensor) for tensor in tensors_in(value) if not is_wrapped(tensor)])

    def storage(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        number = self._storage_numbers.get(storage._cdata)
        if number is None:
            number = self._storage_numbers[storage._cdata] = len(self._storages)
            self._storages.append(storage)
            if storage._cdata in self._owners:
                self._roles[number] = self._owners[storage._cdata]
        return number

    def join(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Take a tensor's storage for another's: they hold the same."""
        storage = tensor.untyped_storage()
        self._kept.append(storage)
        self._storage_numbers[storage._cdata] = self.storage(other)

    def name(self, tensor: torch.Tensor, role: Role, name: str) -> None:
        """Say whose storage this is; the first to say so is believed."""
        self._roles.setdefault(self.storage(tensor), (role, name))

    def storages(self) -> tuple[Storage, ...]:
        """What each storage turned out to be: unnamed ones are constants until written."""
        found = []
        for number, storage in enumerate(self._storages):
            unnamed: tuple[Role, str | None] = (
                ("activation" if number in self.written else "constant"),
                None,
            )
            role, name = self._roles.get(number, unnamed)
            found.append(Storage(storage.nbytes(), role, name))
        return tuple(found)
