"""Split the state that a pass carries from layer to layer into one part per layer."""

from dataclasses import dataclass, field
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import values_in

PLAIN = (int, float, bool, str, bytes, type(None), range, Enum, torch.dtype, torch.device)
OPAQUE = (torch.nn.Module, type, FunctionType, BuiltinFunctionType, MethodType)
SHARED_TYPES = (*PLAIN, *OPAQUE)  # layers share such values, they are never copied
PLAIN_TYPES = frozenset(PLAIN)  # for exact types, which is a faster check
_COMPARED = (*PLAIN, type)

_LEAF, _END = object(), object()


@dataclass(slots=True)
class StatePart:
    """The part of a state that belongs to one layer or to all: its structure and its leaves."""

    build: list[Any] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)

    def key(self) -> Any:
        """A key that is equal for the equal part of another layer."""
        return self.build, [
            leaf if type(leaf) in PLAIN_TYPES else _leaf_key(leaf) for leaf in self.leaves
        ]

    def contents(self) -> list[Any]:
        """A flat list to compare with `is_same`, which includes the versions of tensors."""
        versions = [version(leaf) for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        return [*self.build, *self.leaves, *versions]


class StateParts:
    """The parts of a state by layer number, which is the first integer on the path to a leaf.

    With `only` the parts of other layers are skipped. `containers` are the collections that hold
    a part under a layer's number, with the place of that number in `only`.
    """

    def __init__(self, state: Any, only: tuple[int, ...] | None = None) -> None:
        self.shared = StatePart()
        self.of_layers: dict[int, StatePart] = {}
        self.containers: list[tuple[Any, int]] = []
        self._only = only
        self._open_objects: list[int] = []
        self._take(state, self.shared, None)

    def own(self) -> tuple[StatePart, ...]:
        """The part shared by all layers, and the parts of the numbers given as `only`."""
        return self.shared, *(self.of_layers.get(each, StatePart()) for each in self._only or ())

    def contents(self, but: tuple[int, ...]) -> dict[int | None, list[Any]]:
        """The contents of each part, without those of the numbers `but`."""
        contents: dict[int | None, list[Any]] = {None: self.shared.contents()}
        for number, part in self.of_layers.items():
            if number not in but:
                contents[number] = part.contents()
        return contents

    def _take(self, value: Any, part: StatePart, number: int | None) -> None:
        kind = type(value)
        if kind is torch.Tensor or kind in PLAIN_TYPES:
            part.build.append(_LEAF)
            part.leaves.append(value)
        elif isinstance(value, (list, tuple, dict)):
            self._take_items(value, part, number)
        elif (
            is_state(value)
            and not isinstance(value, torch.Tensor)
            and id(value) not in self._open_objects
        ):
            part.build.append(kind)
            self._open_objects.append(id(value))
            self._take_named(vars(value), part, number)
            self._open_objects.pop()
            part.build.append(_END)
        else:
            part.build.append(_LEAF)
            part.leaves.append(value)

    def _take_named(self, items: dict[Any, Any], part: StatePart, number: int | None) -> None:
        build, leaves = part.build, part.leaves
        for name, item in items.items():
            kind = type(item)
            build.append(name)
            if kind is torch.Tensor or kind in PLAIN_TYPES:  # most are; one call less for each
                build.append(_LEAF)
                leaves.append(item)
            else:
                self._take(item, part, number)

    def _take_items(self, value: Any, part: StatePart, number: int | None) -> None:
        part.build.append(type(value))
        if isinstance(value, dict):
            for key, item in list(value.items()):
                if number is None and type(key) is int:
                    self._take_numbered(value, key, item)
                else:
                    part.build.append(key)
                    self._take(item, part, number)
        elif number is not None:
            for item in value:
                self._take(item, part, number)
        elif self._only is None:
            for key, item in enumerate(value):
                self._take_numbered(value, key, item)
        else:
            for key in self._only:
                if key < len(value):
                    self._take_numbered(value, key, value[key])
        part.build.append(_END)

    def _take_numbered(self, container: Any, number: int, item: Any) -> None:
        if self._only is not None:
            if number not in self._only:
                return
            self.containers.append((container, self._only.index(number)))
        part = self.of_layers.setdefault(number, StatePart())
        part.build.append(len(self.shared.build))  # identifies the container
        self._take(item, part, number)


def state_contents(value: Any) -> list[Any]:
    """The contents of an object, as a flat list to compare with `is_same`."""
    parts = StateParts(value).contents(but=())
    return [each for number, stamps in parts.items() for each in (number, *stamps)]


def is_same(now: list[Any], then: list[Any]) -> bool:
    """Whether two lists hold identical objects, or equal values of plain types."""
    return len(now) == len(then) and all(map(_is_same_value, now, then))


def is_state(value: Any) -> bool:
    """Whether a value is an object that may keep state between layers, such as a cache."""
    has_attributes = hasattr(value, "__dict__") and not hasattr(value, "to_dict")
    return has_attributes and not isinstance(value, OPAQUE)


def version(tensor: torch.Tensor) -> Any:
    """The number of in-place writes of a tensor.

    A tensor made under `torch.inference_mode` counts none: its version equals no other, so that
    nothing that depends on it is ever replayed.
    """
    return object() if tensor.is_inference() else tensor._version


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Shape, strides, storage offset and dtype."""
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)


def _is_same_value(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, PLAIN) and type(one) is type(other) and one == other)


def _leaf_key(leaf: Any) -> Any:
    """A key that is equal for the corresponding leaf of an equal layer."""
    if type(leaf) in PLAIN_TYPES:
        return leaf
    if isinstance(leaf, torch.Tensor):
        return (None if leaf.is_meta else values_in(leaf), *layout(leaf))
    return leaf if isinstance(leaf, _COMPARED) else id(leaf)
