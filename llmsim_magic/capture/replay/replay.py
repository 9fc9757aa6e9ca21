"""Let a layer stand for those that are alike: run one of each kind, and hand on its like.

A layer is replayed only if it is built like one that ran (`layers.py`), is given the like of what
that was given, finds its own part of the state as that found its, and that one changed nothing
but its results and its own part of the state. Whatever is not so is run. What no look at a layer
can tell, such as a global variable that its forward changes, is taken not to be.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import unrecorded
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.capture.replay.layer_matching import Layer
from llmsim_magic.capture.replay.layer_state import (
    AS_IT_IS,
    OPAQUE,
    PLAIN,
    PLAIN_TYPES,
    Parts,
    held,
    is_same,
    is_state,
    layout,
)

Pair = tuple[torch.Tensor, torch.Tensor]


class _CannotReplay(Exception):
    """Something that no like can be made of."""


@dataclass(slots=True)
class _Given:
    """What a layer is given: a key equal for likes, the tensors in it, and the state objects.

    `kept` is a key of the layer's own part of the state as it finds it, and `found` are the
    tensors given and those of that part: places in it are the same for likes.
    """

    key: Any
    value: Any
    tensors: list[torch.Tensor]
    states: list[Any]
    kept: list[Any]
    found: list[torch.Tensor]


@dataclass(slots=True, eq=False)
class Run:
    """A layer that ran: what it was given, where the state keeps its part, and what came of it."""

    layer: Layer
    given: _Given
    homes: list[Any]
    output: Any
    written: frozenset[int]
    assumed: Counter[str]
    places: dict[int, int] = field(init=False)
    storages: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        found = self.given.found
        self.places = {id(tensor): place for place, tensor in enumerate(found)}
        self.storages = {
            tensor.untyped_storage()._cdata: place for place, tensor in enumerate(found)
        }


@dataclass(frozen=True, slots=True)
class Replayed:
    """The output of a layer that was not run, the run it repeats, and their tensors in pairs."""

    output: Any
    run: Run
    tensors: list[Pair]


class Replayer:
    """The layers of one pass that ran, each ready to stand for its like."""

    def __init__(self, answers: PartialEvaluation) -> None:
        self._answers = answers
        self._runs: dict[int, list[Run]] = {}

    def replay(self, layer: Layer, args: Any, kwargs: Any) -> Replayed | None:
        """The like of an earlier run, or None where there is none."""
        runs = self._runs.get(layer.kind)
        given = self._given(layer, (args, kwargs)) if runs else None
        for run in runs or ():
            if given is not None and _alike(run, given):
                return _Twin(self._answers, run, layer, given).made()
        return None

    def run(
        self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Run | None]:
        """Run a layer; what it did is remembered and returned if others may be given its like."""
        with unrecorded():
            given = self._given(layer, (args, kwargs))
            before = None if given is None else _Before(layer, given)
        assumed = self._answers.assumed.copy()
        output = forward(*args, **kwargs)
        with unrecorded():
            if (
                given is None
                or before is None
                or not before.is_kept(self._given(layer, given.value))
            ):
                return output, None
            new = self._answers.assumed - assumed
            homes = [home for state in given.states for home in Parts(state, layer.number).homes]
            run = Run(layer, given, homes, output, before.written(), new)
            self._runs.setdefault(layer.kind, []).append(run)
        return output, run

    def _given(self, layer: Layer, value: Any) -> _Given | None:
        """What a layer is given; None where that cannot be told."""
        described = _Described(self._answers)
        try:
            key = described.key(value)
        except _CannotReplay:
            return None
        tensors = described.tensors
        if any(tensor.is_inference() for tensor in tensors):
            return None  # it does not say whether it was written
        parts = [part for state in described.states for part in Parts(state, layer.number).own()]
        kept = [leaf for part in parts for leaf in part.leaves if isinstance(leaf, torch.Tensor)]
        keys = [part.key() for part in parts]
        return _Given(key, value, tensors, described.states, keys, tensors + kept)


def _alike(run: Run, given: _Given) -> bool:
    if run.given.key != given.key or run.given.kept != given.kept:
        return False
    # where each layer adds to one tensor that they share, none stands for another
    return not any(run.given.tensors[place] is given.tensors[place] for place in run.written)


class _Before:
    """What there was before a layer ran, to find what it changed."""

    def __init__(self, layer: Layer, given: _Given) -> None:
        self._given = given
        self._layer = layer
        self._states = [Parts(state).stamped(but=layer.number) for state in given.states]
        self._versions = [tensor._version for tensor in given.tensors]
        self._own = _own(layer.module)

    def is_kept(self, given: _Given | None) -> bool:
        """Whether all is as it was, but for the layer's own part of the state."""
        return (
            given is not None
            and _same_given(given, self._given, self.written())
            and is_same(_own(self._layer.module), self._own)
            and all(
                _same_elsewhere(Parts(state).stamped(but=self._layer.number), then)
                for state, then in zip(self._given.states, self._states, strict=True)
            )
        )

    def written(self) -> frozenset[int]:
        """The places of the tensors given that were written in place."""
        return frozenset(
            place
            for place, tensor in enumerate(self._given.tensors)
            if tensor._version != self._versions[place]
        )


class UnrecordedPass:
    """Listens to a pass that nobody records, for its layers to be replayed in it too."""

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


class _Described:
    """A key for arguments that is equal for likes."""

    def __init__(self, answers: PartialEvaluation) -> None:
        self._answers = answers
        self.tensors: list[torch.Tensor] = []
        self.states: list[Any] = []
        self._storages: dict[int, int] = {}

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
            raise _CannotReplay  # an iterator or a set, which may change unseen
        return id(value)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        self.tensors.append(tensor)
        storage = tensor.untyped_storage()._cdata
        alias = self._storages.setdefault(storage, len(self._storages))
        answers = self._answers
        values = None if tensor.is_meta else (storage, tensor._version, answers.knows(tensor))
        return (alias, values, answers.expects(tensor), *layout(tensor))


class _Twin:
    """Makes for one layer the like of what another returned and kept."""

    def __init__(self, answers: PartialEvaluation, run: Run, layer: Layer, given: _Given) -> None:
        self._answers = answers
        self._run = run
        self._layer = layer
        self._found = given.found
        self._made: dict[int, Pair] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._objects: dict[int, Any] = {id(state): state for state in given.states}

    def made(self) -> Replayed | None:
        try:
            with torch._C._DisableTorchDispatch():
                output = self._like(self._run.output, None)
                for home in self._run.homes:
                    self._keep(home)
        except _CannotReplay:
            return None
        if self._run.assumed:
            self._answers.assumed += self._run.assumed
        pairs = [*zip(self._run.given.found, self._found, strict=True), *self._made.values()]
        return Replayed(output, self._run, pairs)

    def _keep(self, home: Any) -> None:
        """Put under this layer's number what the layer that ran has under its own."""
        first, mine = self._run.layer.number, self._layer.number
        if isinstance(home, tuple):
            return
        has = mine in home if isinstance(home, dict) else mine < len(home)
        kept = self._like(home[first], home[mine] if has else None)
        if has or isinstance(home, dict):
            home[mine] = kept
        elif mine == len(home):
            home.append(kept)
        else:
            raise _CannotReplay

    def _like(self, value: Any, mine: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor:
            return self._tensor(value)
        if kind in PLAIN_TYPES or isinstance(value, AS_IT_IS):
            return value
        if isinstance(value, torch.Tensor):
            raise _CannotReplay
        if id(value) in self._objects:
            return self._objects[id(value)]
        if kind is list or kind is tuple:
            return kind([self._like(item, _at(mine, place)) for place, item in enumerate(value)])
        if isinstance(value, dict) or is_state(value):
            return self._object(value, mine)
        if isinstance(value, tuple):
            return kind(*(self._like(item, None) for item in value))
        raise _CannotReplay

    def _object(self, value: Any, mine: Any) -> Any:
        """An object of the same class, or the one that stands there, with the same in it."""
        kind: Any = type(value)
        made = mine if type(mine) is kind else kind.__new__(kind)
        self._objects[id(value)] = made
        if isinstance(value, dict):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            for key, item in value.items():
                kind.__setitem__(made, key, self._like(item, _at(mine, key)))
        if hasattr(value, "__dict__"):
            theirs = vars(made)
            for key, item in vars(value).items():
                theirs[key] = self._like(item, theirs.get(key))
        return made

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        place = self._run.places.get(id(tensor))
        if place is not None:
            return self._found[place]
        pair = self._made.get(id(tensor))
        if pair is None:
            pair = self._made[id(tensor)] = (tensor, self._new(tensor))
        return pair[1]

    def _new(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that looks into this layer's like of the storage that the other looks into."""
        storage = tensor.untyped_storage()
        mine = self._storage(storage)
        if mine is None:
            made = _alone(tensor, storage.nbytes())
            self._storages[storage._cdata] = made.untyped_storage()
        else:
            made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            made.set_(mine, tensor.storage_offset(), tensor.size(), tensor.stride())
        if self._answers.expects(tensor):
            self._answers.expect(made)
        if not tensor.is_meta and not self._answers.knows(tensor):
            self._answers.overwrite(made)
        return made

    def _storage(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        place = self._run.storages.get(storage._cdata)
        if place is None:
            return self._storages.get(storage._cdata)
        return self._found[place].untyped_storage()


def _alone(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The like of a tensor in a storage of its own."""
    made = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    if tensor.is_meta and made.untyped_storage().nbytes() == nbytes:
        return made
    storage = tensor.untyped_storage()
    alone = torch.UntypedStorage(nbytes, device="meta") if tensor.is_meta else storage.clone()
    return made.set_(alone, tensor.storage_offset(), tensor.size(), tensor.stride())


def _own(module: torch.nn.Module) -> list[Any]:
    """What a layer and its parts hold, as a flat list to compare item by item."""
    found: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            found += (name, value)
            if isinstance(value, dict):
                found += (*value, *value.values())
            elif isinstance(value, (list, set)):
                found += value
            elif is_state(value) and not isinstance(value, torch.Tensor):
                found += held(value)
        found += (t._version for t in (*part._parameters.values(), *part._buffers.values())
                  if t is not None)  # fmt: skip
    return found


def _same_elsewhere(now: Mapping[Any, list[Any]], then: Mapping[Any, list[Any]]) -> bool:
    """Whether a state is what it was but for one layer's part."""
    return now.keys() == then.keys() and all(is_same(now[part], then[part]) for part in then)


def _same_given(now: _Given, then: _Given, written: frozenset[int]) -> bool:
    """Whether a layer left its arguments as they were, but for tensors written in place."""
    same = len(now.tensors) == len(then.tensors) and all(map(is_, now.tensors, then.tensors))
    return same and (bool(written) or now.key == then.key)


def _at(mine: Any, key: Any) -> Any:
    if isinstance(mine, Mapping):
        return mine.get(key)
    if isinstance(mine, (list, tuple)) and key < len(mine):
        return mine[key]
    return None
