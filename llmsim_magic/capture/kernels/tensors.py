"""Find tensors in nested values, and number them by storage, offset, shape, strides and dtype."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from llmsim_magic.records.trace.recorded import Role, Storage, Tensor

# A context manager that disables torch function modes, so that our own calls are not recorded.
unrecorded = torch._C.DisableTorchFunction
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_DTYPE_NAMES: dict[torch.dtype, str] = {}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its prefix, such as `bfloat16`."""
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        name = _DTYPE_NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


_PLAIN = frozenset({str, bytes, int, float, bool, type, type(None), torch.dtype, torch.device})
_MAX_DEPTH = 8


def values_in(tensor: torch.Tensor) -> bytes:
    """Return the values of a tensor on the host as bytes, unseen by dispatch modes."""
    with torch._C._DisableTorchDispatch():
        flat = tensor.detach().contiguous().reshape(-1)
        return bytes(flat.view(torch.uint8).numpy().tobytes())


# The answers of `_may_have_items`: a recorder reads the variables of a model's code very often.
_have_items: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return every tensor in nested tuples, lists, mappings and dataclasses, in order."""
    found: list[torch.Tensor] = []
    _collect((value,), found, 0)
    return found


def _collect(values: Iterable[Any], found: list[torch.Tensor], depth: int) -> None:
    for value in values:
        kind: type = type(value)
        if kind in _PLAIN:
            continue
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif depth > _MAX_DEPTH:
            continue
        elif kind is tuple or kind is list:
            _collect(value, found, depth + 1)
        elif kind is dict:
            _collect(value.values(), found, depth + 1)
        elif _may_have_items(kind):
            _collect([item for _, item in _items(value)], found, depth + 1)


def _may_have_items(kind: type) -> bool:
    """Whether `_items` may find any in a value of this type."""
    found = _have_items.get(kind)
    if found is None:
        found = issubclass(kind, (tuple, list, Mapping)) or dataclasses.is_dataclass(kind)
        _have_items[kind] = found
    return found


def named_tensors(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of `tensors_in`, each with its path.

    Args:
        name: Path of `value`, which starts the path of each tensor.
        value: A tensor or nested collections of tensors; other objects are not searched.
        depth: Nesting depth so far.
    """
    if isinstance(value, torch.Tensor):
        yield name, value
    elif type(value) not in _PLAIN and depth <= _MAX_DEPTH:
        for key, item in _items(value):
            yield from named_tensors(f"{name}.{key}", item, depth + 1)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """The items of a collection or a dataclass; none for any other object."""
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
    """Yield every tensor in a cache or state object, each with its path.

    Args:
        name: Path of `value`, which starts the path of each tensor.
        value: A tensor, a collection, or any object; all its attributes are searched.
        seen: Ids of objects that were searched already.
    """
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
        if type(child) is torch.Tensor:
            yield f"{name}.{key}", child
        elif type(child) not in _PLAIN:
            yield from held_tensors(f"{name}.{key}", child, seen)


class TensorTable:
    """Numbers the tensors of a pass and their storages, in the order in which they are added.

    The table keeps storages alive, so that no address is reused; on `meta` they hold no memory.

    Args:
        owners: Role and name of storages that are known before the pass, by storage address.
    """

    def __init__(self, owners: Mapping[int, tuple[Role, str]] | None = None) -> None:
        self.tensors: list[Tensor] = []
        self._owners = owners or {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        # Not held: torch copies the result of a factory function, by a kernel, if others hold it.
        self._by_id: dict[int, tuple[ref[torch.Tensor], int]] = {}
        self._storages: list[torch.UntypedStorage] = []
        self._aliases: list[torch.UntypedStorage] = []
        self._storage_numbers: dict[int, int] = {}
        self._roles: dict[int, tuple[Role, str | None]] = {}
        self.written: set[int] = set()

    def add(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor; equal views of one storage share a number.

        Raises:
            TypeError: The tensor has symbolic sizes.
        """
        known = self._by_id.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        storage = self.storage(tensor)
        key = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        number = self._numbers.get(key)
        if number is None:
            number = self._add_new(key)
        self._by_id[id(tensor)] = ref(tensor), number
        return number

    def forget_layouts(self) -> None:
        """Look at the layout of each tensor again, because one may have changed in place."""
        self._by_id.clear()

    def _add_new(self, key: tuple[Any, ...]) -> int:
        storage, offset, shape, strides, dtype = key
        if not all(type(size) is int for size in shape):
            raise TypeError(
                "tensor sizes are symbolic: torch.jit.trace or torch.export runs inside"
            )
        number = self._numbers[key] = len(self.tensors)
        self.tensors.append(
            Tensor(
                tuple(shape),
                dtype_name(dtype),
                dtype.itemsize,
                storage,
                int(offset),
                tuple(strides),
            )
        )
        return number

    def add_all(self, value: Any) -> tuple[int, ...]:
        """Return the numbers of all tensors in a value; wrappers of `torch.vmap` are left out."""
        add = self.add
        return tuple([add(tensor) for tensor in tensors_in(value) if not _is_wrapped(tensor)])

    def storage(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor's storage."""
        storage = tensor.untyped_storage()
        number = self._storage_numbers.get(storage._cdata)
        if number is None:
            number = self._storage_numbers[storage._cdata] = len(self._storages)
            self._storages.append(storage)
            if storage._cdata in self._owners:
                self._roles[number] = self._owners[storage._cdata]
        return number

    def alias(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """Give the storage of `tensor` the number of the storage of `other`."""
        self.forget_layouts()
        storage = tensor.untyped_storage()
        self._aliases.append(storage)
        self._storage_numbers[storage._cdata] = self.storage(other)

    def name(self, tensor: torch.Tensor, role: Role, name: str) -> None:
        """Set role and name of a tensor's storage, unless they are already set."""
        self._roles.setdefault(self.storage(tensor), (role, name))

    def storages(self) -> tuple[Storage, ...]:
        """Return all storages; one without a role is a constant, or an activation if written."""
        found = []
        for number, storage in enumerate(self._storages):
            unnamed: tuple[Role, str | None] = (
                ("activation" if number in self.written else "constant"),
                None,
            )
            role, name = self._roles.get(number, unnamed)
            found.append(Storage(storage.nbytes(), role, name))
        return tuple(found)
