"""LRU caches of the session: the models built last, and their traces."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from llmsim_magic.capture.hub import local_cache
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

MAX_MODELS = 4
MAX_TRACES = 128  # per model
Question = tuple[Workload, bool, str]  # workload, replay, torch's default dtype
Value = TypeVar("Value")

# Reentrant, because a finaliser that runs here may request a trace. Never held during a build.
_lock = RLock()
_models: "OrderedDict[Hashable, MetaModel]" = OrderedDict()
_traces: "WeakKeyDictionary[MetaModel, OrderedDict[Question, Trace]]" = WeakKeyDictionary()


def model(key: Hashable, build: "Callable[[], MetaModel]") -> "MetaModel":
    """The model with this key; built if it is not cached."""
    return _cached(_models, key, build, MAX_MODELS)


def trace(meta_model: "MetaModel", question: Question, run: Callable[[], Trace]) -> Trace:
    """The trace of a model for a question; run if it is not cached."""
    with _lock:
        traces = _traces.setdefault(meta_model, OrderedDict())
    return _cached(traces, question, run, MAX_TRACES)


def forget() -> None:
    """Clear the session's cache of models, their configs and traces, and free their memory.

    >>> import llmsim_magic as llmsim
    >>> llmsim.forget()
    """
    with _lock:
        forgotten = list(_models.values())
        _models.clear()
    del forgotten
    local_cache.forget()
    forget_traces()


def forget_traces() -> None:
    """Clear the cache of traces, but keep the models."""
    with _lock:
        forgotten = list(_traces.values())
        _traces.clear()
    del forgotten


def _cached(
    cache: "OrderedDict[Hashable, Value] | OrderedDict[Question, Value]",
    key: Hashable,
    make: Callable[[], Value],
    capacity: int,
) -> Value:
    """The value of a key; beyond `capacity` the least recently used value is dropped."""
    kept: OrderedDict[Hashable, Value] = cache  # type: ignore[assignment]
    with _lock:
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
    value = make()
    with _lock:
        kept[key] = value
        forgotten = [kept.popitem(last=False) for _ in range(len(kept) - capacity)]
    del forgotten
    return value


def _replace_lock() -> None:
    """Replace the lock in a forked process: another thread may have held it."""
    global _lock  # noqa: PLW0603
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock)
