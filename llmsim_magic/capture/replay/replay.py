"""Replay layers: run one layer of each kind, and copy its output and state for equal layers.

`layer_matching.py` finds layers that are built equally, `layer_equality.py` proves that a call of
one would do the same as an earlier call of another. Without that proof a layer runs.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmsim_magic.capture.autocast.autocast import keeps_casts
from llmsim_magic.capture.kernels.tensors import unrecorded
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.replay.argument_key import CannotReplay
from llmsim_magic.capture.replay.call_describer import CallDescriber
from llmsim_magic.capture.replay.layer_equality import (
    LayerCall,
    Run,
    StateBeforeLayer,
    is_same_call,
    shifts,
)
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.layer_state import PLAIN_TYPES, SHARED_TYPES, StateParts, is_state

TensorPair = tuple[torch.Tensor, torch.Tensor]  # of the layer that ran, and of the replayed one


@dataclass(slots=True)
class Replayed:
    """The output of a layer that did not run, the run that it repeats, and their tensor pairs.

    The first `inputs` pairs are those of the arguments.
    """

    output: Any
    run: Run
    tensors: list[TensorPair]
    inputs: int


class Replayer:
    """Runs one layer of each kind and replays the equal ones, within one pass."""

    def __init__(self, evaluation: PartialEvaluation) -> None:
        self._evaluation = evaluation
        self._runs: dict[int, list[Run]] = {}
        self._calls = CallDescriber(evaluation)

    def replay(self, layer: Layer, args: Any, kwargs: Any) -> Replayed | None:
        """Replay a layer from an earlier run.

        Args:
            layer: The layer that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            Its output, or None if no earlier run is provably equal and the layer has to run.
        """
        runs = self._runs.get(layer.kind)
        call = self._calls.describe(layer, (args, kwargs)) if runs else None
        for run in runs or ():
            if call is not None and is_same_call(run, call):
                return _OutputCopier(self._evaluation, run, call).replayed()
        return None

    def run(
        self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Run | None]:
        """Run a layer.

        Args:
            layer: The layer that is called.
            forward: Its own forward.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            Its output, and its run if equal layers can be replayed from it.
        """
        if keeps_casts(layer.module):  # of which each layer has its own, until the region ends
            return forward(*args, **kwargs), None
        with unrecorded():
            call = self._calls.describe(layer, (args, kwargs))
            before = None if call is None else StateBeforeLayer(layer, call)
        assumed = self._evaluation.assumed.copy()
        random_states = self._evaluation.random_states()
        output = forward(*args, **kwargs)
        with unrecorded():
            if (
                call is None
                or before is None
                or random_states != self._evaluation.random_states()
                or not before.is_unchanged(self._calls.describe(layer, call.arguments))
            ):
                return output, None
            try:
                with torch._C._DisableTorchDispatch():
                    host_writes = before.host_writes(self._evaluation)
            except CannotReplay:
                return output, None
            new = self._evaluation.assumed - assumed
            containers = [
                container
                for state in call.states
                for container in StateParts(state, call.numbers).containers
            ]
            run = Run(
                layer=layer,
                call=call,
                containers=containers,
                output=output,
                written=before.written(),
                host_writes=host_writes,
                assumed=new,
            )
            self._runs.setdefault(layer.kind, []).append(run)
            self._calls.keep(call)
        return output, run


class UnrecordedPass:
    """A listener of a pass that is not recorded, which still replays layers."""

    def __init__(self, replayer: Replayer | None) -> None:
        self._replayer = replayer

    def enter(self, path: str, module: torch.nn.Module, inputs: Any) -> None: ...

    def leave(self, module: torch.nn.Module, output: Any) -> None: ...

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._replayer is None:
            return forward(*args, **kwargs)
        with unrecorded():
            replayed = self._replayer.replay(layer, args, kwargs)
        if replayed is not None:
            return replayed.output
        output, _ = self._replayer.run(layer, forward, args, kwargs)
        return output


class _OutputCopier:
    """Copies the output and the state of a layer that ran to an equal layer."""

    def __init__(self, evaluation: PartialEvaluation, run: Run, call: LayerCall) -> None:
        self._evaluation = evaluation
        self._run = run
        self._call = call
        self._tensors = call.all_tensors
        self._copies: dict[int, TensorPair] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._shifts: dict[int, int] = {}
        self._objects: dict[int, Any] = {id(state): state for state in call.states}

    def replayed(self) -> Replayed | None:
        try:
            with torch._C._DisableTorchDispatch():
                self._shifts = shifts(self._run, self._call)
                output = self._copied(self._run.output, None)
                for container, place in self._run.containers:
                    self._copy_state(container, place)
                self._write_on_host()
        except CannotReplay:
            return None
        if self._run.assumed:
            self._evaluation.assumed += self._run.assumed
        pairs = [
            *zip(self._run.call.all_tensors, self._tensors, strict=True),
            *self._copies.values(),
        ]
        return Replayed(output, self._run, pairs, len(self._call.tensors))

    def _write_on_host(self) -> None:
        if self._run.host_writes:
            self._evaluation.changes += 1
        for index, values in self._run.host_writes.items():
            if values is None:
                self._evaluation.mark_overwritten(self._tensors[index])
            else:
                self._tensors[index].copy_(values)

    def _copy_state(self, container: Any, place: int) -> None:
        """Copy the state of the layer that ran to one of this layer's numbers in a container."""
        first, mine = self._run.call.numbers[place], self._call.numbers[place]
        if isinstance(container, tuple):
            return
        has = mine in container if isinstance(container, dict) else mine < len(container)
        kept = self._copied(container[first], container[mine] if has else None)
        if has or isinstance(container, dict):
            container[mine] = kept
        elif mine == len(container):
            container.append(kept)
        else:
            raise CannotReplay

    def _copied(self, value: Any, mine: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor:
            return self._tensor(value)
        if kind in PLAIN_TYPES or isinstance(value, SHARED_TYPES):
            return value
        if isinstance(value, torch.Tensor):
            raise CannotReplay
        if id(value) in self._objects:
            return self._objects[id(value)]
        if kind is list or kind is tuple:
            return kind(
                [self._copied(item, _item_or_none(mine, place)) for place, item in enumerate(value)]
            )
        if isinstance(value, dict) or is_state(value):
            return self._object(value, mine)
        if isinstance(value, tuple):
            return kind(*(self._copied(item, None) for item in value))
        raise CannotReplay

    def _object(self, value: Any, mine: Any) -> Any:
        """Copy an object's contents into this layer's existing object, or into a new one."""
        kind: Any = type(value)
        made = mine if type(mine) is kind else kind.__new__(kind)
        self._objects[id(value)] = made
        if isinstance(value, dict):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            for key, item in value.items():
                kind.__setitem__(made, key, self._copied(item, _item_or_none(mine, key)))
        if hasattr(value, "__dict__"):
            theirs = vars(made)
            for key, item in vars(value).items():
                is_plain = type(item) in PLAIN_TYPES
                theirs[key] = item if is_plain else self._copied(item, theirs.get(key))
        return made

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        place = self._run.places.get(id(tensor))
        if place is not None:
            return self._tensors[place]
        pair = self._copies.get(id(tensor))
        if pair is None:
            pair = self._copies[id(tensor)] = (tensor, self._new(tensor))
        return pair[1]

    def _new(self, tensor: torch.Tensor) -> torch.Tensor:
        """A new tensor on this layer's copy of the other tensor's storage."""
        storage = tensor.untyped_storage()
        mine = self._storage(storage)
        if mine is None:
            made = _with_own_storage(tensor, storage.nbytes())
            self._storages[storage._cdata] = made.untyped_storage()
        else:
            shift = self._shifts.get(storage._cdata, 0) // tensor.itemsize
            made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            made.set_(mine, tensor.storage_offset() + shift, tensor.size(), tensor.stride())
        if self._evaluation.is_check(tensor):
            self._evaluation.mark_check(made)
        if not tensor.is_meta and not self._evaluation.is_known(tensor):
            self._evaluation.mark_overwritten(made)
        return made

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        place = self._run.storages.get(storage._cdata)
        if place is None:
            return self._storages.get(storage._cdata)
        return self._tensors[place].untyped_storage()


def _with_own_storage(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """A tensor of the same layout on a new storage."""
    made = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    if tensor.is_meta and made.untyped_storage().nbytes() == nbytes:
        return made
    storage = tensor.untyped_storage()
    new_storage = torch.UntypedStorage(nbytes, device="meta") if tensor.is_meta else storage.clone()
    return made.set_(new_storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _item_or_none(mine: Any, key: Any) -> Any:
    if isinstance(mine, Mapping):
        return mine.get(key)
    if isinstance(mine, (list, tuple)) and key < len(mine):
        return mine[key]
    return None
