"""Find regions of CUDA autocast that torch turns off because the machine has no CUDA device.

`torch.autocast("cuda")` then warns, and forgets that it was to be on. The warning reaches the
filters of warnings while the region is being made.
"""

import ast
import inspect
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch

_MAKE = torch.autocast.__init__.__code__
_ENTER = torch.autocast.__enter__.__code__
_WARNING_FRAMES = 8  # between a filter and the call that warns, where Python warns and not C
_requested: "WeakSet[torch.autocast]" = WeakSet()


class _RegionFilter:
    """As the message pattern of a filter of warnings: matches that of a region of one thread."""

    def __init__(self) -> None:
        self._thread: int | None = get_ident()

    def end(self) -> None:
        self._thread = None

    def match(self, text: str) -> bool:
        """Whether a warning is that a region of CUDA autocast is turned off, which is noted."""
        frame: FrameType | None = sys._getframe(1) if get_ident() == self._thread else None
        for _ in range(_WARNING_FRAMES):
            if frame is None or frame.f_code is _MAKE:
                break
            frame = frame.f_back
        if frame is None or frame.f_code is not _MAKE or frame.f_locals["device_type"] != "cuda":
            return False
        _requested.add(frame.f_locals["self"])
        return True


@contextmanager
def noting_requests() -> Iterator[None]:
    """Note the regions of CUDA autocast that this thread makes, without torch's warning."""
    region_filter = _RegionFilter()
    entry: Any = ("ignore", region_filter, Warning, None, 0)
    warnings.filters.insert(0, entry)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        pass  # a warning that was shown before reaches the filters again
    try:
        yield
    finally:
        region_filter.end()
        with suppress(ValueError):  # another thread's `catch_warnings` has restored its own list
            warnings.filters.remove(entry)  # type: ignore[attr-defined]


def is_requested(frame: FrameType | None) -> bool:
    """Whether a region of CUDA autocast that is off was to be on.

    A region that a decorator made before the trace, when a module was imported, is judged by the
    decorator's source.

    Args:
        frame: That in which the region is entered, or one that it called.
    """
    while frame is not None and frame.f_code is not _ENTER:
        frame = frame.f_back
    if frame is None:
        return False
    region: torch.autocast = frame.f_locals["self"]
    if region.device != "cuda" or torch.cuda.is_available():
        return False
    if region in _requested:
        return True
    while frame is not None and frame.f_code.co_name == "__enter__":  # that of a subclass too
        frame = frame.f_back
    caller = {} if frame is None else frame.f_locals
    is_decorated = caller.get("autocast_instance") is region
    return is_decorated and _is_on_by_decorator(type(region), caller["func"])


def _is_on_by_decorator(kind: type[torch.autocast], function: Any) -> bool:
    """Whether the decorator of a function, by its source, turns autocast on."""
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return False
    for call in getattr(source, "decorator_list", ()):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("autocast"):
            names = {each.arg: each.value for each in call.keywords if each.arg is not None}
            given = inspect.signature(kind.__init__).bind_partial(None, *call.args, **names)
            enabled = given.arguments.get("enabled", ast.Constant(value=True))
            return _value(enabled, function) is not False
    return False


def _value(expression: ast.expr, function: Any) -> Any:
    """A literal, or the global of a name; None for anything else."""
    if isinstance(expression, ast.Name):
        return getattr(function, "__globals__", {}).get(expression.id)
    return expression.value if isinstance(expression, ast.Constant) else None
