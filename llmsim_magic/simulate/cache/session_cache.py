"""LRU caches of the session: the models built last, their limits, traces and formulas."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.trace.context_limits import ContextLimits
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

MAX_MODELS = 4
MAX_TRACES = 128  # per model
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Question:
    """What a trace of a model answers.

    Attributes:
        workload: phase, batch and context.
        replay: whether identical layers are run only once.
        default_dtype: torch's default dtype, of tensors that the model creates without one.
    """

    workload: Workload
    replay: bool
    default_dtype: str

    @property
    def kind(self) -> "Kind":
        """What questions that the same formulas answer have in common."""
        return self.workload.phase, self.replay, self.default_dtype


Kind = tuple[str, bool, str]  # phase, replay, torch's default dtype


@dataclass(frozen=True, slots=True)
class _Known:
    """What was recorded of a model, and the formulas that were derived from it."""

    traces: "OrderedDict[Question, Trace]" = field(default_factory=OrderedDict)
    symbolic: dict[Kind, SymbolicTrace] = field(default_factory=dict)


# The key of a recipe; of a live module, its copy, as long as that exists.
Owner = Hashable

# Reentrant, because a finaliser that runs here may request a trace. Never held during a build.
_lock = RLock()
_models: "OrderedDict[Hashable, MetaModel]" = OrderedDict()
_limits: "OrderedDict[Hashable, ContextLimits]" = OrderedDict()
_known: "OrderedDict[Owner, _Known]" = OrderedDict()
_live: "WeakKeyDictionary[Any, _Known]" = WeakKeyDictionary()


def model(key: Hashable, build: "Callable[[], MetaModel]") -> "MetaModel":
    """The model with this key; built if it is not cached."""
    return _cached(_models, key, build, MAX_MODELS)


def limits(key: Hashable, find: Callable[[], ContextLimits]) -> ContextLimits:
    """The longest contexts of the model with this key; found if they are not cached."""
    return _cached(_limits, key, find, MAX_MODELS * 4)


def trace(owner: Owner, question: Question, run: Callable[[], Trace]) -> Trace:
    """The trace of a model for a question; run if it is not cached."""
    return _cached(_known_of(owner).traces, question, run, MAX_TRACES)


def known_trace(owner: Owner, question: Question) -> Trace | None:
    """The trace of a model for a question; None if it is not cached."""
    return _known_of(owner).traces.get(question)


def count_traces(owner: Owner, kind: Kind) -> int:
    """The number of traces of a model that the same formulas would answer."""
    with _lock:
        return sum(question.kind == kind for question in _known_of(owner).traces)


def symbolic(owner: Owner, kind: Kind) -> SymbolicTrace | None:
    """The formulas of a model; None if they were not derived.

    Formulas without regions say that none hold, so that they are derived only once.
    """
    return _known_of(owner).symbolic.get(kind)


def keep_symbolic(owner: Owner, kind: Kind, found: SymbolicTrace) -> None:
    """Keep the formulas of a model as long as its traces."""
    _known_of(owner).symbolic[kind] = found


def _known_of(owner: Owner) -> _Known:
    if isinstance(owner, tuple):
        return _cached(_known, owner, _Known, MAX_MODELS)
    with _lock:
        return _live.setdefault(owner, _Known())


def forget() -> None:
    """Clear the models, limits, traces and formulas, and free their memory."""
    for cache in (_models, _limits):
        _clear(cache)
    forget_traces()


def forget_traces() -> None:
    """Clear the traces and formulas, but keep the models."""
    for cache in (_known, _live):
        _clear(cache)


def _clear(cache: MutableMapping[Any, Any]) -> None:
    with _lock:
        forgotten = list(cache.values())
        cache.clear()
    del forgotten


def _cached(
    cache: "OrderedDict[Any, Value]", key: Hashable, make: Callable[[], Value], capacity: int
) -> Value:
    """The value of a key; beyond `capacity` the least recently used value is dropped."""
    with _lock:
        if key in cache:
            cache.move_to_end(key)
            return cache[key]
    value = make()
    with _lock:
        value = cache.setdefault(key, value)
        forgotten = [cache.popitem(last=False) for _ in range(len(cache) - capacity)]
    del forgotten
    return value


def _replace_lock() -> None:
    """Replace the lock in a forked process: another thread may have held it."""
    global _lock  # noqa: PLW0603
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock)
