"""A lock for work that only one thread may do at a time."""

import os
from threading import Lock, get_ident
from weakref import WeakSet

from llmsim_magic.records.errors import RecursiveTrace

_locks: "WeakSet[ExclusiveLock]" = WeakSet()


class ExclusiveLock:
    """A lock that raises `RecursiveTrace` if its own thread enters it again.

    A model whose forward requests a trace would otherwise deadlock. After a fork the child releases
    the lock unless the forking thread held it, because other threads do not exist in the child.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._lock = Lock()
        self._thread: int | None = None
        _locks.add(self)

    def __enter__(self) -> None:
        """Raises `RecursiveTrace` in the thread that holds the lock."""
        if self._thread == get_ident():
            raise RecursiveTrace(self._message)
        self._lock.acquire()
        self._thread = get_ident()

    def __exit__(self, *_: object) -> None:
        self._thread = None
        self._lock.release()

    def release_after_fork(self) -> None:
        """Release the lock in a forked process if another thread held it."""
        if self._lock.locked() and self._thread != get_ident():
            self._lock, self._thread = Lock(), None


def _release_all_after_fork() -> None:
    for lock in tuple(_locks):
        lock.release_after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_release_all_after_fork)
