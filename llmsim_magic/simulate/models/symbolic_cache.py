"""The symbolic traces of the session, by model; they answer in place of a pass where they hold."""

from collections.abc import Mapping
from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

Kind = tuple[str, bool, str]  # phase, replay, torch's default dtype

_lock = RLock()
_known: "WeakKeyDictionary[MetaModel, dict[Kind, SymbolicTrace]]" = WeakKeyDictionary()


def known(meta_model: "MetaModel", kind: Kind) -> SymbolicTrace | None:
    """The symbolic trace of a model; None if it was not derived.

    One without regions says that no formulas hold, so that they are derived only once.
    """
    with _lock:
        return _known.get(meta_model, {}).get(kind)


def keep(meta_model: "MetaModel", found: Mapping[Kind, SymbolicTrace]) -> None:
    """Keep symbolic traces for as long as the model is kept."""
    with _lock:
        _known.setdefault(meta_model, {}).update(found)


def evaluate(meta_model: "MetaModel", workload: Workload, replay: bool, dtype: str) -> Trace | None:
    """The trace of a workload, without a pass; None where it is not proven."""
    symbolic = known(meta_model, (workload.phase, replay, dtype))
    return None if symbolic is None else symbolic.evaluate(workload)


def forget() -> None:
    """Clear all symbolic traces."""
    with _lock:
        forgotten = list(_known.values())
        _known.clear()
    del forgotten


def replace_lock() -> None:
    """Replace the lock in a forked process: another thread may have held it."""
    global _lock  # noqa: PLW0603
    _lock = RLock()
