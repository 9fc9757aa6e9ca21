"""LRU caches of the session: the models built last, their limits, and their traces."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

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


# Reentrant, because a finaliser that runs here may request a trace. Never held during a build.
_lock = RLock()
_models: "OrderedDict[Hashable, MetaModel]" = OrderedDict()
_limits: "OrderedDict[Hashable, ContextLimits]" = OrderedDict()
_traces: "OrderedDict[Hashable, OrderedDict[Question, Trace]]" = OrderedDict()
_live_traces: "WeakKeyDictionary[MetaModel, OrderedDict[Question, Trace]]" = WeakKeyDictionary()


def model(key: Hashable, build: "Callable[[], MetaModel]") -> "MetaModel":
    """The model with this key; built if it is not cached."""
    return _cached(_models, key, build, MAX_MODELS)


def limits(key: Hashable, find: Callable[[], ContextLimits]) -> ContextLimits:
    """The longest contexts of the model with this key; found if they are not cached."""
    return _cached(_limits, key, find, MAX_MODELS * 4)


def trace(key: Hashable, question: Question, run: Callable[[], Trace]) -> Trace:
    """The trace of the model with this key for a question; run if it is not cached."""
    traces = _cached(_traces, key, OrderedDict[Question, Trace], MAX_MODELS)
    return _cached(traces, question, run, MAX_TRACES)


def live_trace(live: "MetaModel", question: Question, run: Callable[[], Trace]) -> Trace:
    """The trace of a copied module, which is cached as long as the copy exists."""
    with _lock:
        traces = _live_traces.setdefault(live, OrderedDict())
    return _cached(traces, question, run, MAX_TRACES)


def forget() -> None:
    """Clear the models, limits and traces, and free their memory."""
    for cache in (_models, _limits):
        _clear(cache)
    forget_traces()


def forget_traces() -> None:
    """Clear the cache of traces, but keep the models."""
    for cache in (_traces, _live_traces):
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
