"""Describe the calls of layers; one that differs from the last by a few tensors, in a few steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from llmsim_magic.capture.autocast.autocast import AutocastState, autocast_state
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.replay.argument_key import HostValues
from llmsim_magic.capture.replay.layer_equality import LayerCall, call_of, describe_call
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.layer_state import OPAQUE, PLAIN_TYPES, is_state, layout


class CallDescriber:
    """Describes the calls of layers in one pass.

    The layers of a model mostly get the same objects, and the output of the layer before. Objects
    that are the same as in the last call of an equal layer need no look into them, as long as no
    tensor was written and nothing else became known about values.

    Args:
        evaluation: The partial evaluation of the pass.
    """

    def __init__(self, evaluation: PartialEvaluation) -> None:
        self._evaluation = evaluation
        self._host_values: dict[int, HostValues] = {}  # by the id of their tensors
        self._last: dict[int, _LastCall] = {}

    def describe(self, layer: Layer, arguments: Any) -> LayerCall | None:
        """Describe a call of a layer.

        Args:
            layer: The layer that is called.
            arguments: Its positional and keyword arguments, as one tuple.

        Returns:
            The description; None if the arguments cannot be compared, such as iterators.
        """
        last = self._last.pop(layer.kind, None)
        autocast = autocast_state()
        if last is not None and (last.changes, last.autocast) == (
            self._evaluation.changes,
            autocast,
        ):
            tensors = last.replaced(arguments, self._evaluation)
            if tensors is not None:
                self._last[layer.kind] = last
                then = last.call
                last.call = call_of(
                    self._evaluation,
                    key=then.key,
                    numbers=layer.numbers,
                    offset=0,
                    arguments=arguments,
                    tensors=tensors,
                    states=then.states,
                    host_values=then.host_values,
                )
                return last.call
        call = describe_call(self._evaluation, layer, arguments, self._host_values)
        if call is not None and _is_repeatable(call):
            self._last[layer.kind] = _LastCall(call, self._evaluation.changes, autocast)
        return call

    def keep(self, call: LayerCall) -> None:
        """Keep what was found out about host values of a call, whose tensors are held."""
        self._host_values |= {id(values.tensor): values for values in call.host_values}


@dataclass(slots=True)
class _LastCall:
    """A call whose arguments cannot change unnoticed, and the changes of the pass before it.

    `autocast` is the state of autocast in it.
    """

    call: LayerCall
    changes: int
    autocast: AutocastState

    def replaced(self, arguments: Any, evaluation: PartialEvaluation) -> list[torch.Tensor] | None:
        """The tensors of other arguments; None unless those have the same key.

        They do if each is the same object as in this call, or a tensor on `meta` that is alone on
        its storage and laid out like the one in this call.
        """
        then, now = self.call.arguments, arguments
        if len(then[0]) != len(now[0]) or [*then[1]] != [*now[1]]:
            return None
        pairs = zip(_values(then), _values(now), strict=True)
        others = [(before, value) for before, value in pairs if before is not value]
        tensors = self.call.tensors
        made = {id(before): value for before, value in others}
        places = [place for place, tensor in enumerate(tensors) if id(tensor) in made]
        if len(places) != len(others):
            return None
        for before, value in others:
            if not _is_alike(before, value) or (
                evaluation.is_check(before) is not evaluation.is_check(value)
            ):
                return None
        replaced = [made.get(id(tensor), tensor) for tensor in tensors]
        if not (_are_alone(tensors, places) and _are_alone(replaced, places)):
            return None
        return replaced


def _values(arguments: Any) -> Iterator[Any]:
    return chain(arguments[0], arguments[1].values())


def _is_alike(one: Any, other: Any) -> bool:
    if type(one) is not torch.Tensor or type(other) is not torch.Tensor:
        return False
    on_meta = one.is_meta and other.is_meta and not other.is_inference()
    return on_meta and layout(one) == layout(other)


def _are_alone(tensors: list[torch.Tensor], places: list[int]) -> bool:
    """Whether the tensors at these places share no storage with another."""
    addresses = [tensor.untyped_storage()._cdata for tensor in tensors]
    return all(addresses.count(addresses[place]) == 1 for place in places)


def _is_repeatable(call: LayerCall) -> bool:
    """Whether the arguments of a call change only by a write to a tensor or in their state.

    An integer may be the index of the layer, so that the same one means another thing next time.
    """
    values = [*_values(call.arguments)]
    return int not in map(type, values) and all(map(_is_fixed, values))


def _is_fixed(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(item) in PLAIN_TYPES or type(item) is torch.Tensor for item in value)
    if isinstance(value, (tuple, list, Mapping)):
        return False
    is_compared_by_identity = isinstance(value, OPAQUE) or hasattr(value, "to_dict")
    return type(value) in PLAIN_TYPES or is_compared_by_identity or is_state(value)
