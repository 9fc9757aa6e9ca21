"""Taking turns at what one thread may do at a time."""

import os
from threading import Lock, get_ident
from weakref import WeakSet

from llmsim_magic.records.errors import RecursiveTrace

_turns: "WeakSet[ExclusiveLock]" = WeakSet()


class ExclusiveLock:
    """A lock that threads wait for, but none for itself: what asks for its own turn is refused.

    Such is a forward that asks for a trace. A forked process finds the turn free, unless it is its
    own: the thread that had it stays behind.
    """

    def __init__(self, refused: str) -> None:
        self._refused = refused
        self._lock = Lock()
        self._thread: int | None = None
        _turns.add(self)

    def __enter__(self) -> None:
        """Raises `Busy` in the thread whose turn it is."""
        if self._thread == get_ident():
            raise RecursiveTrace(self._refused)
        self._lock.acquire()
        self._thread = get_ident()

    def __exit__(self, *_: object) -> None:
        self._thread = None
        self._lock.release()

    def renew(self) -> None:
        """Take the turn from a thread that a forked process does not have."""
        if self._lock.locked() and self._thread != get_ident():
            self._lock, self._thread = Lock(), None


def _renew_all() -> None:
    for turn in tuple(_turns):
        turn.renew()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_renew_all)
