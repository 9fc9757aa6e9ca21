"""Prove that a layer would do the same as an earlier, equal layer that ran.

The proof has three conditions: the two calls have equal arguments, the layer finds its part of the
state as the earlier one found its own, and the earlier one changed nothing but its output and its
part of the state. `layer_matching.py` finds the layers that are built equally. Effects that no
attribute shows, such as a global variable that a forward changes, are assumed not to exist.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch

from llmsim_magic.capture.autocast.autocast import autocast_state
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.replay.argument_key import ArgumentKey, CannotReplay, HostValues
from llmsim_magic.capture.replay.layer_matching import INDEX, Layer
from llmsim_magic.capture.replay.layer_state import (
    StateParts,
    is_same,
    is_state,
    state_contents,
    version,
)

_OFFSET = re.compile(r"offset$")


@dataclass(slots=True, kw_only=True)
class LayerCall:
    """The arguments of a layer, and the layer's part of the state before it runs.

    Attributes:
        key: Equal for calls with equal arguments under the same autocast.
        numbers: The numbers of the layer's part of the state in this call.
        offset: The argument by which those are larger than the layer's own; 0 without one.
        arguments: The positional and keyword arguments, as one tuple.
        tensors: The tensors in the arguments.
        states: The objects in the arguments that keep state between layers, such as a cache.
        state_keys: Keys of the layer's part of the state and of the shared part.
        all_tensors: The tensors of the arguments and of those parts, in corresponding order.
        host_values: The values of those arguments that are on the host.
    """

    key: Any
    numbers: tuple[int, ...]
    offset: int
    arguments: Any
    tensors: list[torch.Tensor]
    states: list[Any]
    state_keys: list[Any]
    all_tensors: list[torch.Tensor]
    host_values: list[HostValues]


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """A layer that ran, with its arguments, its output and its effects.

    `containers` hold its part of the state, each with the place of its number. `written` are the
    indices of argument tensors that it wrote in place. `host_writes` has the tensors on the host
    that it wrote, by their index in `call.all_tensors`: the new values, or None if those are
    unknown. `assumed` counts the values that the partial evaluation assumed.
    """

    layer: Layer
    call: LayerCall
    containers: list[tuple[Any, int]]
    output: Any
    written: frozenset[int]
    host_writes: dict[int, torch.Tensor | None]
    assumed: Counter[str]
    places: dict[int, int] = field(init=False)
    storages: dict[int, int] = field(init=False)

    addresses: list[int] = field(init=False)

    def __post_init__(self) -> None:
        tensors = self.call.all_tensors
        self.places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self.addresses = [tensor.untyped_storage()._cdata for tensor in tensors]
        self.storages = {address: place for place, address in enumerate(self.addresses)}


def describe_call(
    evaluation: PartialEvaluation,
    layer: Layer,
    arguments: Any,
    known: Mapping[int, HostValues],
) -> LayerCall | None:
    """Describe a call of a layer.

    Args:
        evaluation: The partial evaluation of the pass, which knows the values of tensors.
        layer: The layer that is called.
        arguments: Its positional and keyword arguments, as one tuple.
        known: Values on the host in the arguments of earlier runs, by the id of their tensors.

    Returns:
        The description; None if the arguments cannot be compared, such as iterators.
    """
    described = ArgumentKey(evaluation, known)
    args, keywords = list(arguments[0]), dict(arguments[1])
    indices, offset = _take_indices(layer, args, keywords)
    numbers = tuple(number + offset for number in layer.numbers)
    try:
        key = indices, described.key((args, keywords)), autocast_state()
    except CannotReplay:
        return None
    if any(tensor.is_inference() for tensor in described.tensors):
        return None  # inference tensors have no version counter
    return call_of(
        evaluation,
        key=key,
        numbers=numbers,
        offset=offset,
        arguments=arguments,
        tensors=described.tensors,
        states=described.states,
        host_values=described.host_values,
    )


def call_of(
    evaluation: PartialEvaluation,
    *,
    key: Any,
    numbers: tuple[int, ...],
    offset: int,
    arguments: Any,
    tensors: list[torch.Tensor],
    states: list[Any],
    host_values: list[HostValues],
) -> LayerCall:
    """Describe a call by its arguments, as in `LayerCall`, and by the layer's part of the state."""
    parts = [part for state in states for part in StateParts(state, numbers).own()]
    state_tensors = [
        leaf for part in parts for leaf in part.leaves if isinstance(leaf, torch.Tensor)
    ]
    keys = [[part.key() for part in parts], list(map(evaluation.is_known, state_tensors))]
    return LayerCall(
        key=key,
        numbers=numbers,
        offset=offset,
        arguments=arguments,
        tensors=tensors,
        states=states,
        state_keys=keys,
        all_tensors=tensors + state_tensors,
        host_values=host_values,
    )


def is_same_call(run: Run, call: LayerCall) -> bool:
    """Whether a call equals that of an earlier run of an equal layer.

    Args:
        run: A layer that ran and changed nothing but its output and its part of the state.
        call: The call of a layer of the same kind.

    Returns:
        True if the layer can be replayed from the run.
    """
    if run.call.key != call.key or run.call.state_keys != call.state_keys:
        return False
    # an in-place write to a tensor that both layers share changes what the second one reads
    return not any(run.call.tensors[index] is call.tensors[index] for index in run.written)


def shifts(run: Run, call: LayerCall) -> dict[int, int]:
    """The distance in bytes of a call's tensors from those of the run, by the run's storages.

    Returns:
        The distances; without those of 0 if there are no others.

    Raises:
        CannotReplay: Tensors that share a storage lie at different distances, as those of a state
            and of an argument may.
    """
    distances = [
        0 if ran is mine else int(mine.storage_offset() - ran.storage_offset()) * ran.itemsize
        for ran, mine in zip(run.call.all_tensors, call.all_tensors, strict=True)
    ]
    if not any(distances):
        return {}
    found: dict[int, int] = {}
    for address, shift in zip(run.addresses, distances, strict=True):
        if found.setdefault(address, shift) != shift:
            raise CannotReplay
    return found


class StateBeforeLayer:
    """A snapshot taken before a layer runs, to find out what the layer changes."""

    def __init__(self, layer: Layer, call: LayerCall) -> None:
        self._call = call
        self._layer = layer
        self._states = [StateParts(state).contents(but=call.numbers) for state in call.states]
        self._own_parts = self._own_part_contents()
        self._versions = [version(tensor) for tensor in call.all_tensors]
        for values in call.host_values:
            values.digest()  # the layer may write into them
        self._module_contents = _module_contents(layer.module)

    def is_unchanged(self, call: LayerCall | None) -> bool:
        """Whether the layer changed only its part of the state; `call` is described then."""
        return (
            call is not None
            and _same_arguments(call, self._call, self.written())
            and is_same(_module_contents(self._layer.module), self._module_contents)
            and (not call.offset or not is_same(self._own_part_contents(), self._own_parts))
            and all(
                _same_other_parts(StateParts(state).contents(but=self._call.numbers), then)
                for state, then in zip(self._call.states, self._states, strict=True)
            )
        )

    def _own_part_contents(self) -> list[Any]:
        """The contents of the layer's part of the state, which it changes if the offset is one."""
        parts = [StateParts(state, self._call.numbers) for state in self._call.states]
        return [each for one in parts for part in one.own()[1:] for each in part.contents()]

    def written(self) -> frozenset[int]:
        """The indices of the argument tensors that were written in place."""
        return frozenset(
            index for index in self._written_of_all() if index < len(self._call.tensors)
        )

    def host_writes(self, evaluation: PartialEvaluation) -> dict[int, torch.Tensor | None]:
        """The written tensors on the host, as in `Run`.

        Raises:
            CannotReplay: The same values cannot be written into such a tensor of another layer.
        """
        found: dict[int, torch.Tensor | None] = {}
        for index in self._written_of_all():
            tensor = self._call.all_tensors[index]
            if not evaluation.is_known(tensor):
                found |= {} if tensor.is_meta else {index: None}
            elif tensor.is_inference() or 0 in tensor.stride():
                raise CannotReplay
            else:
                found[index] = tensor.detach().clone()
        return found

    def _written_of_all(self) -> list[int]:
        return [
            index
            for index, tensor in enumerate(self._call.all_tensors)
            if version(tensor) != self._versions[index]
        ]


def _take_indices(layer: Layer, args: list[Any], keywords: dict[str, Any]) -> tuple[Any, int]:
    """Take out the arguments that are an index of the layer, or say by how much its indices rise.

    Returns:
        The indices, as places in the layer's numbers by name, and the rise, 0 without one.
    """
    indices: dict[str, int | None] = {}
    offset = 0
    for name, given, key in _named_integers(layer, args, keywords):
        value = given[key]
        if INDEX.search(name) and value in layer.numbers:
            indices[name] = layer.numbers.index(value)
            given[key] = None
        elif _OFFSET.search(name) and value > 0 and not offset:
            indices[name] = None
            given[key], offset = None, value
    return indices, offset


def _named_integers(
    layer: Layer, args: list[Any], keywords: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """The name, the collection and the key of each integer argument, if names are known."""
    if layer.arguments is None:
        return []
    named: list[tuple[str, Any, Any]] = [
        (name, args, place)
        for place, (name, value) in enumerate(zip(layer.arguments, args, strict=False))
        if type(value) is int
    ]
    named += [(name, keywords, name) for name, value in keywords.items() if type(value) is int]
    return named


def _module_contents(module: torch.nn.Module) -> list[Any]:
    """All attributes of a layer and its submodules, as a flat list to compare item by item."""
    found: list[Any] = []
    for submodule in module.modules():
        for name, value in vars(submodule).items():
            found += (name, value)
            if isinstance(value, dict):
                found += (*value, *value.values())
            elif isinstance(value, (list, set)):
                found += value
            elif is_state(value) and not isinstance(value, torch.Tensor):
                found += state_contents(value)
        tensors = (*submodule._parameters.values(), *submodule._buffers.values())
        found += (version(tensor) for tensor in tensors if tensor is not None)
    return found


def _same_other_parts(now: Mapping[Any, list[Any]], then: Mapping[Any, list[Any]]) -> bool:
    """Whether the parts of a state that belong to other layers are unchanged."""
    return now.keys() == then.keys() and all(is_same(now[part], then[part]) for part in then)


def _same_arguments(now: LayerCall, then: LayerCall, written: frozenset[int]) -> bool:
    """Whether a layer left its arguments unchanged, apart from tensors written in place."""
    same = len(now.tensors) == len(then.tensors) and all(map(is_, now.tensors, then.tensors))
    return same and (bool(written) or now.key == then.key)
