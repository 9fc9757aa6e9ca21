"""Keep what one thread writes, logs and warns of from being shown; other threads are as before."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Mute:
    """Whether the thread that made it is still to be silent; in a forked process it is not.

    Args:
        packages: those whose logs and warnings are dropped; None drops all.

    Attributes:
        has_dropped: whether something that was logged was dropped.
    """

    def __init__(self, packages: tuple[str, ...] | None = None) -> None:
        self.has_dropped = False
        self._process = os.getpid()
        self._thread: int | None = threading.get_ident()
        self._packages = packages

    def end(self) -> None:
        self._thread = None

    def is_on(self) -> bool:
        """Whether this thread is the silent one."""
        return threading.get_ident() == self._thread and os.getpid() == self._process

    def match(self, module: str) -> bool:
        """As the module pattern of a filter of warnings: matches those of the silent thread."""
        return self.is_on() and self._is_of_packages(module)

    def filter(self, record: logging.LogRecord) -> bool:
        """As a filter of a log handler: drops the records of the silent thread."""
        is_dropped = self.is_on() and self._is_of_packages(record.name)
        self.has_dropped = self.has_dropped or is_dropped
        return not is_dropped

    def _is_of_packages(self, module: str) -> bool:
        return self._packages is None or f"{module}.".startswith(
            tuple(f"{package}." for package in self._packages)
        )


class _MutedStream:
    """A text stream without what the silent thread writes; else the stream itself."""

    def __init__(self, stream: Any, mute: Mute) -> None:
        self._stream, self._mute = stream, mute

    def write(self, text: str) -> int:
        if self._mute.is_on():
            return len(text)
        written: int = self._stream.write(text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def muted_thread() -> Iterator[None]:
    """Silence the current thread: its writes to `sys.stdout` and `sys.stderr`, logs and warnings.

    A handler of a log that is set up meanwhile may keep the stream that stands in for
    `sys.stderr`, which then passes everything on.
    """
    mute = Mute()
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    muted = {name: _MutedStream(each, mute) for name, each in streams.items() if each is not None}
    with _filtering(mute, (logging.root,)):
        for name, stream in muted.items():
            setattr(sys, name, stream)
        try:
            yield
        finally:
            mute.end()
            for name, stream in muted.items():
                if getattr(sys, name) is stream:
                    setattr(sys, name, streams[name])


@contextmanager
def muted_packages(packages: tuple[str, ...]) -> Iterator[Mute]:
    """Silence what some packages log and warn of in the current thread.

    Args:
        packages: their names, or those of modules in them.
    """
    mute = Mute(packages)
    with _filtering(mute, (logging.root, *map(logging.getLogger, packages))):
        yield mute


@contextmanager
def _filtering(mute: Mute, loggers: Iterable[logging.Logger]) -> Iterator[None]:
    """Let a mute drop warnings, and the records that handlers of some loggers receive."""
    warning_filter: Any = ("ignore", None, Warning, mute, 0)
    of_loggers = (each for logger in loggers for each in logger.handlers)
    handlers = [each for each in (*of_loggers, logging.lastResort) if each is not None]
    warnings.filters.insert(0, warning_filter)  # type: ignore[attr-defined]
    for handler in handlers:
        handler.addFilter(mute)
    try:
        yield
    finally:
        mute.end()
        for handler in handlers:
            handler.removeFilter(mute)
        with suppress(ValueError):  # another thread's `catch_warnings` has restored its own list
            warnings.filters.remove(warning_filter)  # type: ignore[attr-defined]
