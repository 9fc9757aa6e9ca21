"""What a pass carries from layer to layer, taken apart by the layer that each part belongs to."""

from dataclasses import dataclass, field
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import values_in

PLAIN = (int, float, bool, str, bytes, type(None), range, Enum, torch.dtype, torch.device)
OPAQUE = (torch.nn.Module, type, FunctionType, BuiltinFunctionType, MethodType)
AS_IT_IS = (*PLAIN, *OPAQUE)  # what layers may share
PLAIN_TYPES = frozenset(PLAIN)  # most plain values are of these very types: quicker to ask
_COMPARED = (*PLAIN, type)

_LEAF, _END = object(), object()


@dataclass(slots=True)
class Part:
    """What a state holds for one layer, or for none: how that is built, and its leaves in order."""

    build: list[Any] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)

    def key(self) -> Any:
        """Equal for the like of it in another layer."""
        return self.build, list(map(_spec, self.leaves))

    def stamped(self) -> list[Any]:
        """A flat list that another one `is_same` as while nothing in it changes."""
        versions = [leaf._version for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        return [*self.build, *self.leaves, *versions]


class Parts:
    """A state's parts by the number of their layer: the first whole number on the way to a leaf.

    With `only` those of other layers are passed over. `homes` are the collections that hold a
    numbered part.
    """

    def __init__(self, state: Any, only: int | None = None) -> None:
        self.shared = Part()
        self.of_layers: dict[int, Part] = {}
        self.homes: list[Any] = []
        self._only = only
        self._within: list[int] = []
        self._take(state, self.shared, None)

    def own(self) -> tuple[Part, Part]:
        """What lies beside all layers, and what belongs to the one layer asked for."""
        return self.shared, next(iter(self.of_layers.values()), Part())

    def stamped(self, but: int) -> dict[int | None, list[Any]]:
        """What each part holds now, but for one layer's."""
        stamped: dict[int | None, list[Any]] = {None: self.shared.stamped()}
        for number, part in self.of_layers.items():
            if number != but:
                stamped[number] = part.stamped()
        return stamped

    def _take(self, value: Any, part: Part, number: int | None) -> None:
        kind = type(value)
        if kind is torch.Tensor or kind in PLAIN_TYPES:
            part.build.append(_LEAF)
            part.leaves.append(value)
        elif isinstance(value, (list, tuple, dict)):
            self._take_items(value, part, number)
        elif (
            is_state(value)
            and not isinstance(value, torch.Tensor)
            and id(value) not in self._within
        ):
            part.build.append(kind)
            self._within.append(id(value))
            for name, item in vars(value).items():
                part.build.append(name)
                self._take(item, part, number)
            self._within.pop()
            part.build.append(_END)
        else:
            part.build.append(_LEAF)
            part.leaves.append(value)

    def _take_items(self, value: Any, part: Part, number: int | None) -> None:
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
        elif self._only < len(value):
            self._take_numbered(value, self._only, value[self._only])
        part.build.append(_END)

    def _take_numbered(self, home: Any, number: int, item: Any) -> None:
        if self._only is not None:
            if number != self._only:
                return
            self.homes.append(home)
        part = self.of_layers.setdefault(number, Part())
        part.build.append(len(self.shared.build))  # which home it is
        self._take(item, part, number)


def held(value: Any) -> list[Any]:
    """All that a value holds, as a flat list that another one `is_same` as while it keeps that."""
    parts = Parts(value).stamped(but=-1)
    return [each for number, stamps in parts.items() for each in (number, *stamps)]


def is_same(now: list[Any], then: list[Any]) -> bool:
    """Whether two lists hold the very same objects, or equal ones where they are plain."""
    return len(now) == len(then) and all(map(_is, now, then))


def is_state(value: Any) -> bool:
    """Whether a value is an object that may keep something from one layer to the next."""
    has_attributes = hasattr(value, "__dict__") and not hasattr(value, "to_dict")
    return has_attributes and not isinstance(value, OPAQUE)


def layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)


def _is(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, PLAIN) and type(one) is type(other) and one == other)


def _spec(leaf: Any) -> Any:
    """What a leaf has in common with its like in another layer's part."""
    if type(leaf) in PLAIN_TYPES:
        return leaf
    if isinstance(leaf, torch.Tensor):
        return (None if leaf.is_meta else values_in(leaf), *layout(leaf))
    return leaf if isinstance(leaf, _COMPARED) else id(leaf)
