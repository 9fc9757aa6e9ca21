"""Ctrl-C, where nothing is half done.

Python raises `KeyboardInterrupt` between any two instructions: also between a change and the
`finally` that would undo it. Where something is to be undone, an interrupt is noted instead, and
the work asks for it at places where it may end.
"""

import _thread
import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled

Given = ParamSpec("Given")
Made = TypeVar("Made")
PATIENCE_S = 1.0
_stopped: ContextVar[IsCancelled] = ContextVar("stopped", default=never_cancelled)


class DeferredInterrupt:
    """While open, an interrupt waits until the work asks for it, or has ended; then it is raised.

    Entered, it is a function that says whether to stop: there was an interrupt, or `cancelled`
    says so, or the work around it is to stop. Work that does not ask for `PATIENCE_S` seconds is
    interrupted wherever it is, where that `insists`, and by a second interrupt in any case.

    Signals are the main thread's, and are left to whoever handles them otherwise than Python does.
    """

    def __init__(self, cancelled: IsCancelled = never_cancelled, *, insists: bool = True) -> None:
        self._cancelled = cancelled
        self._insists = insists
        self._around: Token[IsCancelled] | None = None
        self._is_handler = False
        self._has_come = False
        self._is_over = False
        self._ended = _thread.allocate_lock()
        self._settling = _thread.allocate_lock()

    def __enter__(self) -> IsCancelled:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._ended.acquire()
            signal.signal(signal.SIGINT, self._interrupted)
            self._is_handler = True
        around, cancelled = _stopped.get(), self._cancelled

        def stopped() -> bool:
            return self._has_come or cancelled() or around()

        self._around = _stopped.set(stopped)
        return stopped

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        if self._around is not None:
            _stopped.reset(self._around)
        if not self._is_handler:
            return
        self._ended.release()
        with self._settling:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._has_come and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        is_first, self._has_come = not self._has_come, True
        if self._is_over:
            return
        if not is_first:
            signal.default_int_handler(number, frame)
        if self._insists:
            # A thread of `threading` would take locks that the code interrupted may hold.
            _thread.start_new_thread(self._insist, ())

    def _insist(self) -> None:
        if self._ended.acquire(timeout=PATIENCE_S):
            return
        with self._settling:
            if not self._is_over:
                _thread.interrupt_main()


def defer_interrupt(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """A function that an interrupt does not spoil: the libraries it calls change global things."""

    @wraps(make)
    def whole(*args: Given.args, **keywords: Given.kwargs) -> Made:
        with DeferredInterrupt():
            return make(*args, **keywords)

    return whole
