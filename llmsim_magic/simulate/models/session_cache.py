"""What a session remembers: the last models it built, and their traces."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

MODELS = 4
TRACES = 128  # of each model
Question = tuple[Workload, bool, str]  # whether with replay, and under which default dtype
Value = TypeVar("Value")

# A finaliser may ask for a trace wherever it runs, here too. Only what is quick is done meanwhile.
_lock = RLock()
_models: "OrderedDict[Hashable, MetaModel]" = OrderedDict()
_traces: "WeakKeyDictionary[MetaModel, OrderedDict[Question, Trace]]" = WeakKeyDictionary()


def model(key: Hashable, build: "Callable[[], MetaModel]") -> "MetaModel":
    """The model of a key, built the first time."""
    return _remembered(_models, key, build, MODELS)


def trace(meta_model: "MetaModel", question: Question, run: Callable[[], Trace]) -> Trace:
    """The answer of a model to a question, run the first time."""
    with _lock:
        traces = _traces.setdefault(meta_model, OrderedDict())
    return _remembered(traces, question, run, TRACES)


def forget() -> None:
    """Forget every model and trace: the next question is answered from nothing."""
    with _lock:
        forgotten = list(_models.values())
        _models.clear()
    del forgotten
    forget_traces()


def forget_traces() -> None:
    """Forget every trace, but not the models that were built."""
    with _lock:
        forgotten = list(_traces.values())
        _traces.clear()
    del forgotten


def _remembered(
    known: "OrderedDict[Hashable, Value] | OrderedDict[Question, Value]",
    key: Hashable,
    make: Callable[[], Value],
    most: int,
) -> Value:
    """The value of a key; of more than `most` the one asked for longest ago is forgotten."""
    kept: OrderedDict[Hashable, Value] = known  # type: ignore[assignment]
    with _lock:
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
    value = make()
    with _lock:
        kept[key] = value
        forgotten = [kept.popitem(last=False) for _ in range(len(kept) - most)]
    del forgotten
    return value


def _renew() -> None:
    """In a forked process another thread may have been at it."""
    global _lock  # noqa: PLW0603
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
