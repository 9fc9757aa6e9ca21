"""Keys of the arguments of a layer's call, equal where two layers are given the same."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any
from weakref import ref

import torch

from llmsim_magic.capture.kernels.tensors import values_in
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.replay.layer_state import (
    OPAQUE,
    PLAIN,
    PLAIN_TYPES,
    is_state,
    layout,
    version,
)


class CannotReplay(Exception):
    """A value that cannot be compared or copied, so that the layer has to run."""


class ArgumentKey:
    """Computes a key of arguments that is equal for equal arguments of two layers.

    Args:
        evaluation: The partial evaluation of the pass, which knows the values of tensors.
        known: Values on the host that earlier keys describe, by the id of their tensors.
    """

    def __init__(self, evaluation: PartialEvaluation, known: Mapping[int, "HostValues"]) -> None:
        self._evaluation = evaluation
        self._known = known
        self.tensors: list[torch.Tensor] = []
        self.states: list[Any] = []
        self.host_values: list[HostValues] = []
        self._storages: dict[int, tuple[int, int]] = {}  # number and first offset in bytes

    def key(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN_TYPES:
            return (kind, value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if kind is tuple or kind is list:
            return (kind, [self.key(item) for item in value])
        if isinstance(value, PLAIN):
            return (kind, value)
        if isinstance(value, (tuple, list)):
            return (kind, [self.key(item) for item in value])
        if isinstance(value, (dict, Mapping)):
            return (kind, [(name, self.key(item)) for name, item in value.items()])
        if is_state(value):
            self.states.append(value)
        elif not isinstance(value, OPAQUE) and not hasattr(value, "to_dict"):
            raise CannotReplay  # an iterator or a set may change unnoticed
        return id(value)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        self.tensors.append(tensor)
        storage = tensor.untyped_storage()._cdata
        shape, strides, offset, dtype = placed = layout(tensor)
        start = int(offset) * dtype.itemsize
        alias, first = self._storages.setdefault(storage, (len(self._storages), start))
        values = None if tensor.is_meta else self._values(tensor, placed)
        # Each layer may get a slice of one tensor: only the places in a storage that two arguments
        # have to each other matter.
        is_check = self._evaluation.is_check(tensor)
        return (values, is_check, alias, start - first, shape, strides, dtype)

    def _values(self, tensor: torch.Tensor, placed: tuple[Any, ...]) -> "HostValues":
        """Values on the host, as the object that described them before if they are the same."""
        is_known = self._evaluation.is_known(tensor)
        values = self._known.get(id(tensor))
        if values is None or not values.describes(tensor, placed, is_known=is_known):
            values = HostValues(tensor, placed, is_known=is_known)
        self.host_values.append(values)
        return values


class HostValues:
    """The values of a tensor on the host, equal to equal values, and to others that are unknown."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: torch.Tensor, placed: tuple[Any, ...], *, is_known: bool) -> None:
        self._tensor: Callable[[], torch.Tensor | None] = lambda: tensor
        self._version = version(tensor)
        self._layout = placed
        self._is_known = is_known
        self._digest: bytes | None = None

    def describes(self, tensor: torch.Tensor, placed: tuple[Any, ...], *, is_known: bool) -> bool:
        """Whether these are still the values of a tensor, with its layout now."""
        return (
            self.tensor is tensor
            and self._version == version(tensor)
            and self._layout == placed
            and self._is_known is is_known
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HostValues) or self._is_known is not other._is_known:
            return False
        mine, its = self.tensor, other.tensor
        if not self._is_known:
            return True  # nothing reads values that are unknown
        is_same = (
            mine is not None
            and its is not None
            and mine.untyped_storage()._cdata == its.untyped_storage()._cdata
        )
        if is_same and self._layout == other._layout and self._version == other._version:
            return True
        return self.digest() is not None and self.digest() == other.digest()

    def digest(self) -> bytes | None:
        """A digest of the values when the call was described; None if it is too late to know."""
        tensor = self.tensor
        if self._digest is None and tensor is not None and self._version == version(tensor):
            self._digest = blake2b(values_in(tensor)).digest()
        return self._digest

    @property
    def tensor(self) -> torch.Tensor | None:
        """The tensor; None if it was released and nothing else holds it."""
        return self._tensor()

    def release(self) -> None:
        """Keep a digest of the values, and do not hold the tensor any more."""
        self.digest()
        if (tensor := self.tensor) is not None:
            self._tensor = ref(tensor)
