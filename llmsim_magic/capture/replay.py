"""Let a layer stand for those that are alike: run one of each kind, and hand on its like.

A layer is replayed only if it is built like one that ran (`layers.py`), is given the like of what
that was given, finds its own part of the state as that found its, and that one changed nothing
but its results and its own part of the state. Whatever is not so is run. What no look at a layer
can tell, such as a global variable that its forward changes, is taken not to be.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

from llmsim_magic.capture.answers import Answers
from llmsim_magic.capture.layers import Layer
from llmsim_magic.capture.tensors import unheard

_PLAIN = (int, float, bool, str, bytes, type(None), range, Enum, torch.dtype, torch.device)
_OPAQUE = (torch.nn.Module, type, FunctionType, BuiltinFunctionType, MethodType)

Path = tuple[Any, ...]
Pair = tuple[torch.Tensor, torch.Tensor]


class _CannotReplay(Exception):
    """Something that no like can be made of."""


@dataclass(slots=True)
class _Given:
    """What a layer is given: a key equal for likes, the tensors in it, and the state objects."""

    key: Any
    value: Any
    tensors: list[torch.Tensor]
    states: list[Any]
    parts: "list[_Part]"


@dataclass(slots=True)
class _Part:
    """One layer's part of a state: its leaves, and the collections that hold it."""

    leaves: dict[Path, Any] = field(default_factory=dict)
    homes: list[Any] = field(default_factory=list)

    def key(self) -> Any:
        return tuple((path, _spec(leaf)) for path, leaf in self.leaves.items())


@dataclass(slots=True, eq=False)
class Run:
    """A layer that ran: what it was given, where the state keeps its part, and what came of it."""

    layer: Layer
    given: _Given
    homes: list[Any]
    output: Any
    written: frozenset[int]
    assumed: Counter[str]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The output of a layer that was not run, the run it repeats, and their tensors in pairs."""

    output: Any
    run: Run
    tensors: list[Pair]


class Replayer:
    """The layers of one pass that ran, each ready to stand for its like."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._runs: dict[int, list[Run]] = {}

    def replay(self, layer: Layer, args: Any, kwargs: Any) -> Replayed | None:
        """The like of an earlier run, or None where there is none."""
        runs = self._runs.get(layer.kind)
        if not runs:
            return None
        given = self._given(layer, (args, kwargs))
        for run in runs:
            if given is not None and self._alike(run, given):
                return _Twin(self._answers, run, layer, given).made()
        return None

    def run(
        self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Run | None]:
        """Run a layer; what it did is remembered and returned if others may be given its like."""
        with unheard():
            given = self._given(layer, (args, kwargs))
            before = None if given is None else _Before(layer, given)
        assumed = self._answers.assumed.copy()
        output = forward(*args, **kwargs)
        with unheard():
            if (
                given is None
                or before is None
                or not before.is_kept(self._given(layer, given.value))
            ):
                return output, None
            new = self._answers.assumed - assumed
            parts = [_part(state, layer.number) for state in given.states]
            homes = [home for part in parts for home in part.homes]
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
        parts = [_part(state, layer.number) for state in described.states]
        return _Given(key, value, described.tensors, described.states, parts)

    def _alike(self, run: Run, given: _Given) -> bool:
        if run.given.key != given.key:
            return False
        if any(run.given.tensors[place] is given.tensors[place] for place in run.written):
            return False  # each layer adds to one tensor that they share
        return all(
            one.key() == other.key()
            for one, other in zip(run.given.parts, given.parts, strict=True)
        )


class _Before:
    """What there was before a layer ran, to find what it changed."""

    def __init__(self, layer: Layer, given: _Given) -> None:
        self._given = given
        self._layer = layer
        self._states = [_everything(state) for state in given.states]
        self._versions = [tensor._version for tensor in given.tensors]
        self._own = _own(layer.module)

    def is_kept(self, given: _Given | None) -> bool:
        """Whether all is as it was, but for the layer's own part of the state."""
        return (
            given is not None
            and _same_given(given, self._given, self.written())
            and _same(_own(self._layer.module), self._own)
            and all(
                _same_elsewhere(_everything(state), then, self._layer.number)
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


class Unheard:
    """Listens to a pass that nobody records, for its layers to be replayed in it too."""

    def __init__(self, replayer: Replayer | None) -> None:
        self._replayer = replayer

    def enter(self, path: str, module: torch.nn.Module, inputs: Any) -> None: ...

    def leave(self, module: torch.nn.Module, output: Any) -> None: ...

    def layer(self, layer: Layer, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._replayer is None:
            return forward(*args, **kwargs)
        with unheard():
            replayed = self._replayer.replay(layer, args, kwargs)
        if replayed is not None:
            return replayed.output
        output, _ = self._replayer.run(layer, forward, args, kwargs)
        return output


class _Described:
    """A key for arguments that is equal for likes."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.tensors: list[torch.Tensor] = []
        self.states: list[Any] = []
        self._storages: dict[int, int] = {}

    def key(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, _PLAIN):
            return (kind, value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (tuple, list)):
            return (kind, tuple(map(self.key, value)))
        if isinstance(value, Mapping):
            return (kind, tuple((name, self.key(item)) for name, item in value.items()))
        if _is_state(value):
            self.states.append(value)
        elif not isinstance(value, _OPAQUE) and not hasattr(value, "to_dict"):
            raise _CannotReplay  # an iterator or a set, which may change unseen
        return id(value)

    def _tensor(self, tensor: torch.Tensor) -> Any:
        self.tensors.append(tensor)
        storage = tensor.untyped_storage()._cdata
        alias = self._storages.setdefault(storage, len(self._storages))
        answers = self._answers
        values = None if tensor.is_meta else (storage, tensor._version, answers.knows(tensor))
        return (alias, values, answers.expects(tensor), *_layout(tensor))


class _Twin:
    """Makes for one layer the like of what another returned and kept."""

    def __init__(self, answers: Answers, run: Run, layer: Layer, given: _Given) -> None:
        self._answers = answers
        self._run = run
        self._layer = layer
        self._given = given
        self._pairs: dict[int, Pair] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._objects: dict[int, Any] = {id(state): state for state in given.states}
        for one, other in zip(run.given.tensors, given.tensors, strict=True):
            self._pair(one, other)
        for before, mine in zip(run.given.parts, given.parts, strict=True):
            for path, leaf in before.leaves.items():
                if isinstance(leaf, torch.Tensor):
                    self._pair(leaf, mine.leaves[path])

    def made(self) -> Replayed | None:
        try:
            with torch._C._DisableTorchDispatch():
                output = self._like(self._run.output, None)
                for home in self._run.homes:
                    self._keep(home)
        except _CannotReplay:
            return None
        self._answers.assumed += self._run.assumed
        return Replayed(output, self._run, list(self._pairs.values()))

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
        if isinstance(value, (_PLAIN, _OPAQUE)):
            return value
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if id(value) in self._objects:
            return self._objects[id(value)]
        if type(value) in (list, tuple):
            items = [self._like(item, _at(mine, place)) for place, item in enumerate(value)]
            return type(value)(items)
        if isinstance(value, dict) or _is_state(value):
            return self._object(value, mine)
        if isinstance(value, tuple):
            return type(value)(*(self._like(item, None) for item in value))
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
            theirs = vars(mine) if made is mine else {}
            for key, item in vars(value).items():
                made.__dict__[key] = self._like(item, theirs.get(key))
        return made

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        pair = self._pairs.get(id(tensor))
        if pair is not None:
            return pair[1]
        if type(tensor) is not torch.Tensor:
            raise _CannotReplay
        storage = tensor.untyped_storage()
        mine = self._storages.get(storage._cdata)
        if mine is None:
            mine = _like_storage(storage)
        made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        made.set_(mine, tensor.storage_offset(), tensor.size(), tensor.stride())
        if self._answers.expects(tensor):
            self._answers.expect(made)
        if not self._answers.knows(tensor):
            self._answers.overwrite(made)
        self._pair(tensor, made)
        return made

    def _pair(self, one: torch.Tensor, other: torch.Tensor) -> None:
        self._pairs[id(one)] = (one, other)
        self._storages[one.untyped_storage()._cdata] = other.untyped_storage()


def _like_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type == "meta":
        return torch.UntypedStorage(storage.nbytes(), device="meta")
    return storage.clone()


def _is_state(value: Any) -> bool:
    """Whether a value is an object that may keep something from one layer to the next."""
    has_attributes = hasattr(value, "__dict__") and not hasattr(value, "to_dict")
    return has_attributes and not isinstance(value, _OPAQUE)


def _layout(tensor: torch.Tensor) -> Any:
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)


def _spec(leaf: Any) -> Any:
    """What a leaf of the state has in common with its like in another layer's part."""
    if isinstance(leaf, torch.Tensor):
        return (leaf.is_meta, *_layout(leaf))
    return leaf if isinstance(leaf, (_PLAIN, type)) else id(leaf)


def _part(state: Any, number: int) -> _Part:
    """What a state keeps for the layer of a number, and beside all layers."""
    part = _Part()
    for path, _, leaf in _leaves(state, number, part.homes):
        part.leaves[path] = leaf
    return part


def _everything(state: Any) -> dict[tuple[Path, Any], Any]:
    """Every leaf of a state by its path and the number of the layer that it belongs to."""
    return {
        (path, number): (leaf, leaf._version) if isinstance(leaf, torch.Tensor) else leaf
        for path, number, leaf in _leaves(state, None, [])
    }


def _same_elsewhere(now: Mapping[Any, Any], then: Mapping[Any, Any], number: int) -> bool:
    """Whether a state is what it was but for one layer's part."""
    rest, before = (
        {place: leaf for place, leaf in leaves.items() if place[1] != number}
        for leaves in (now, then)
    )
    return rest.keys() == before.keys() and all(_is(rest[p], before[p]) for p in rest)


def _is(one: Any, other: Any) -> bool:
    """Whether two leaves are one, or equal where they are plain; a tuple item by item."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(_is, one, other))
    return one is other or (isinstance(one, _PLAIN) and one == other)


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
            elif _is_state(value) and not isinstance(value, torch.Tensor):
                found += (each for place in _everything(value).items() for each in place)
        found += (t._version for t in (*part._parameters.values(), *part._buffers.values())
                  if t is not None)  # fmt: skip
    return found


def _same(now: list[Any], then: list[Any]) -> bool:
    return len(now) == len(then) and all(map(_is, now, then))


def _same_given(now: _Given, then: _Given, written: frozenset[int]) -> bool:
    """Whether a layer left its arguments as they were, but for tensors written in place."""
    same = len(now.tensors) == len(then.tensors) and all(map(is_, now.tensors, then.tensors))
    return same and (bool(written) or now.key == then.key)


def _leaves(
    value: Any,
    only: int | None,
    homes: list[Any],
    path: Path = (),
    number: Any = None,
    seen: tuple[int, ...] = (),
) -> Iterator[tuple[Path, Any, Any]]:
    """A state's leaves with their paths; the first number on the way is the layer's, and left out.

    With `only` those of other layers are passed over; `homes` collects what holds its parts.
    """
    if isinstance(value, (list, tuple, dict)):
        yield (*path, "type"), number, type(value)
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, item in items:
            if number is not None or type(key) is not int:
                yield from _leaves(item, only, homes, (*path, key), number, seen)
            elif only is None or key == only:
                if only is not None:
                    homes.append(value)
                yield from _leaves(item, only, homes, (*path, "its number"), key, seen)
    elif _is_state(value) and not isinstance(value, torch.Tensor) and id(value) not in seen:
        yield (*path, "type"), number, type(value)
        for key, item in vars(value).items():
            yield from _leaves(item, only, homes, (*path, key), number, (*seen, id(value)))
    else:
        yield path, number, value


def _at(mine: Any, key: Any) -> Any:
    if isinstance(mine, Mapping):
        return mine.get(key)
    if isinstance(mine, (list, tuple)) and key < len(mine):
        return mine[key]
    return None
