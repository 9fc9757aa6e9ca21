"""Defers Ctrl-C while work changes global state that it must restore.

Python raises `KeyboardInterrupt` between any two instructions, even between a change and the
`finally` that undoes it. Here an interrupt sets a flag, which the work polls where it can stop.
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

Params = ParamSpec("Params")
Result = TypeVar("Result")
PATIENCE_S = 1.0
_should_stop: ContextVar[IsCancelled] = ContextVar("stopped", default=never_cancelled)


class DeferredInterrupt:
    """Defers SIGINT until the work polls for it or exits, and then raises `KeyboardInterrupt`.

    Entering returns a function that says whether to stop: after an interrupt, if `cancelled()` is
    true, or if an enclosing `DeferredInterrupt` should stop. With `insists`, work that is not done
    `PATIENCE_S` seconds after the interrupt is interrupted wherever it is; a second interrupt does
    so at once. A destructor ends first.

    Only the main thread handles signals. A custom SIGINT handler is left in place.
    """

    def __init__(self, cancelled: IsCancelled = never_cancelled, *, insists: bool = True) -> None:
        self._cancelled = cancelled
        self._insists = insists
        self._token: Token[IsCancelled] | None = None
        self._is_handler = False
        self._is_interrupted = False
        self._has_exited = False
        self._running_lock = _thread.allocate_lock()
        self._exit_lock = _thread.allocate_lock()

    def __enter__(self) -> IsCancelled:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._running_lock.acquire()
            signal.signal(signal.SIGINT, self._interrupted)
            self._is_handler = True
        enclosing, cancelled = _should_stop.get(), self._cancelled

        def should_stop() -> bool:
            return self._is_interrupted or cancelled() or enclosing()

        self._token = _should_stop.set(should_stop)
        return should_stop

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._has_exited = True
        if self._token is not None:
            _should_stop.reset(self._token)
        if not self._is_handler:
            return
        self._running_lock.release()
        with self._exit_lock:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._is_interrupted and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        is_first, self._is_interrupted = not self._is_interrupted, True
        if self._has_exited:
            return
        if not is_first and not _is_in_destructor(frame):
            signal.default_int_handler(number, frame)
        if self._insists:
            # A thread of `threading` would take locks that the code interrupted may hold.
            _thread.start_new_thread(self._insist, ())

    def _insist(self) -> None:
        if self._running_lock.acquire(timeout=PATIENCE_S):
            return
        with self._exit_lock:
            if not self._has_exited:
                _thread.interrupt_main()


def _is_in_destructor(frame: FrameType | None) -> bool:
    """Whether a `__del__` runs, from which Python raises nothing: it prints a traceback."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def defer_interrupt(make: Callable[Params, Result]) -> Callable[Params, Result]:
    """Decorator that defers interrupts while a function changes global state of libraries."""

    @wraps(make)
    def wrapper(*args: Params.args, **keywords: Params.kwargs) -> Result:
        with DeferredInterrupt():
            return make(*args, **keywords)

    return wrapper
