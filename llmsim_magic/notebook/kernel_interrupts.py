"""Deliver the kernel's interrupt to jobs that run in threads while no cell runs."""

import signal
from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython

_RETRY_S = 0.1


class Interrupts:
    """Runs callbacks when an idle kernel is interrupted.

    An idle kernel ignores SIGINT; a kernel that runs a cell delivers it to the cell, which this
    class leaves alone. A signal handler must be set in the main thread, so it is set from the
    kernel's event loop. Outside a kernel nothing is set.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], object]] = []
        self._is_set = False

    def add(self, callback: Callable[[], object]) -> None:
        """Run the callback at the next interrupts of the idle kernel."""
        self._callbacks.append(callback)
        self._schedule_update(0)

    def remove(self, callback: Callable[[], object]) -> None:
        """Stop running the callback."""
        self._callbacks.remove(callback)
        self._schedule_update(0)

    def _schedule_update(self, seconds: float) -> None:
        loop = _event_loop()
        if loop is not None:
            loop.add_callback(loop.call_later, seconds, self._update_handler)

    def _update_handler(self) -> None:
        """Set or reset the signal handler; retry later while a cell has set another one."""
        is_wanted = bool(self._callbacks)
        if is_wanted == self._is_set:
            return
        handlers = (signal.SIG_IGN, self._on_signal)
        before, after = handlers if is_wanted else handlers[::-1]
        if signal.getsignal(signal.SIGINT) == before:
            signal.signal(signal.SIGINT, after)
            self._is_set = is_wanted
        else:
            self._schedule_update(_RETRY_S)

    def _on_signal(self, *_: Any) -> None:
        """Run the callbacks in the event loop, which a signal alone does not wake."""
        for callback in tuple(self._callbacks):
            _event_loop().asyncio_loop.call_soon_threadsafe(callback)


def _event_loop() -> Any:
    """The event loop of the kernel; None outside a kernel."""
    return getattr(getattr(get_ipython(), "kernel", None), "io_loop", None)


interrupts = Interrupts()
