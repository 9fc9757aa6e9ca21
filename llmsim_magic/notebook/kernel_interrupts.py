"""The kernel's interrupt, for work that goes on in threads while no cell runs."""

import signal
from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython

_AGAIN_S = 0.1


class Interrupts:
    """While there is something to do, an interrupt of the idle kernel does it.

    An idle kernel ignores SIGINT, and one that runs a cell gives it to the cell: that is left as
    it is. Signals are the main thread's, so all is set in its event loop. Outside a kernel
    nothing is: an interrupt there reaches whoever waits.
    """

    def __init__(self) -> None:
        self._acts: list[Callable[[], object]] = []
        self._is_set = False

    def add(self, act: Callable[[], object]) -> None:
        self._acts.append(act)
        self._soon(0)

    def remove(self, act: Callable[[], object]) -> None:
        self._acts.remove(act)
        self._soon(0)

    def _soon(self, seconds: float) -> None:
        loop = _loop()
        if loop is not None:
            loop.add_callback(loop.call_later, seconds, self._settle)

    def _settle(self) -> None:
        """Take the signal, or give it back; later, where a cell has it now."""
        is_wanted = bool(self._acts)
        if is_wanted == self._is_set:
            return
        ends = (signal.SIG_IGN, self._interrupted)
        before, after = ends if is_wanted else ends[::-1]
        if signal.getsignal(signal.SIGINT) == before:
            signal.signal(signal.SIGINT, after)
            self._is_set = is_wanted
        else:
            self._soon(_AGAIN_S)

    def _interrupted(self, *_: Any) -> None:
        """In a signal's handler: the loop sleeps, and must be woken to act."""
        for act in tuple(self._acts):
            _loop().asyncio_loop.call_soon_threadsafe(act)


def _loop() -> Any:
    """The event loop of the kernel, if there is one."""
    return getattr(getattr(get_ipython(), "kernel", None), "io_loop", None)


interrupts = Interrupts()
