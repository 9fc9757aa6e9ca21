"""Read the Python stack: which line of the modelling code called, through which helpers."""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = str(Path(__file__).parents[2]) + os.sep
_MODULE_CALL = torch.nn.Module.__call__.__code__.co_filename
_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def call_model(model: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Call a model; the frames of whoever started the pass are not read beyond this one."""
    return model(*args, **keywords)


def _starts_pass(frame: FrameType) -> bool:
    return frame.f_code is call_model.__code__


def _is_call(frame: FrameType) -> bool:
    """Whether a frame calls a module, or starts the pass."""
    return frame.f_code.co_filename == _MODULE_CALL or _starts_pass(frame)


@lru_cache(maxsize=4096)
def is_machinery(filename: str) -> bool:
    """Whether a file is torch's or ours, rather than modelling code."""
    return filename.startswith((_TORCH, _HERE, "<frozen"))


def forward_code(module: Any) -> CodeType | None:
    """The code of a module's forward, below any decorators."""
    patched = vars(module).get("forward")
    return _undecorated(type(module).forward if patched is None else patched)


def _undecorated(function: Any) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


def only_forwards(code: CodeType) -> bool:
    """Whether a frame is a wrapper `(*args, **kwargs)`, a lambda or a comprehension."""
    variadic = code.co_flags & _VARIADIC == _VARIADIC
    return code.co_name.startswith("<") or (variadic and code.co_argcount == 0)


def is_helper(code: CodeType) -> bool:
    """Whether a function is one step of its caller.

    A generator is not, for others run between its steps; nor is a forward that was inherited.
    """
    in_steps = code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE)
    return not in_steps and code.co_name != "forward"


def frames_of_call(depth: int) -> list[FrameType]:
    """The modelling code's frames, innermost first, up to the running module's call."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _is_call(frame):
        if not is_machinery(frame.f_code.co_filename):
            frames.append(frame)
        frame = frame.f_back
    return frames


def frames_of_caller(depth: int) -> list[FrameType]:
    """The same for the code that called the module which is just about to run."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename != _MODULE_CALL:
        frame = frame.f_back
    frames: list[FrameType] = []
    while frame is not None and not _starts_pass(frame):
        filename = frame.f_code.co_filename
        if filename == _MODULE_CALL:
            if frames:
                break
        elif not is_machinery(filename):
            frames.append(frame)
        frame = frame.f_back
    return frames


def place_of_call(depth: int) -> tuple[int, CodeType | None, int]:
    """Which module runs, and the modelling code and its line that called."""
    caller = None
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _is_call(frame):
        if caller is None and not is_machinery(frame.f_code.co_filename):
            caller = frame
        frame = frame.f_back
    module = None if frame is None else frame.f_locals.get("self")
    return (id(module), caller and caller.f_code, 0 if caller is None else caller.f_lineno)


def helpers(frames: list[FrameType], forward: CodeType | None) -> Iterator[FrameType]:
    """Of the frames of a call, those of functions that the forward called, outermost first."""
    inner: list[FrameType] = []
    for frame in frames:
        if frame.f_code is forward:
            break
        inner.append(frame)
    else:
        inner = inner[:-1]
    for frame in reversed(inner):
        if not only_forwards(frame.f_code):
            yield frame


def function_name(frame: FrameType) -> str:
    """`apply_rotary_pos_emb`, or `DynamicCache.update` for a method."""
    owner = frame.f_locals.get("self")
    name = frame.f_code.co_name
    return name if owner is None else f"{type(owner).__name__}.{name}"


def arguments(frame: FrameType) -> list[object]:
    """What the function was given, in the order of its signature."""
    code = frame.f_code
    variadic = bool(code.co_flags & inspect.CO_VARARGS) + bool(
        code.co_flags & inspect.CO_VARKEYWORDS
    )
    count = code.co_argcount + code.co_kwonlyargcount + variadic
    values = frame.f_locals
    return [values[name] for name in code.co_varnames[:count] if name in values]


def source(frames: list[FrameType], forward: CodeType | None) -> str | None:
    """`file.py:line` of the innermost frame in the file where the module is written."""
    home = forward.co_filename if forward is not None else None
    for frame in frames:
        if frame.f_code.co_filename == home:
            return line(frame.f_code, frame.f_lineno)
    return line(frames[0].f_code, frames[0].f_lineno) if frames else None


def line(code: CodeType | None, number: int) -> str:
    """`file.py:line`."""
    return f"{os.path.basename(code.co_filename)}:{number}" if code else "the code"
