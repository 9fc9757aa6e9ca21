"""Read the Python stack: which line of the model's code made a call, through which helpers."""

import inspect
import os
import sys
from collections.abc import Container, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

_TORCH_ROOT = os.path.dirname(torch.__file__) + os.sep
_PACKAGE_ROOT = str(Path(__file__).parents[2]) + os.sep
_MODULE_FILE = torch.nn.Module.__call__.__code__.co_filename
_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def call_model(model: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Call a model; searches of the stack stop at the frame of this function.

    Args:
        model: The module, or what runs in its place, such as the step of an optimizer.
        args: Its positional arguments.
        keywords: Its keyword arguments.

    Returns:
        What its forward returns.
    """
    return model(*args, **keywords)


def _starts_pass(frame: FrameType) -> bool:
    return frame.f_code is call_model.__code__


def _is_boundary(frame: FrameType) -> bool:
    """Whether a frame calls a module or starts the pass."""
    return frame.f_code.co_filename == _MODULE_FILE or _starts_pass(frame)


@lru_cache(maxsize=4096)
def is_library_file(filename: str) -> bool:
    """Whether a file belongs to torch or to this package, and so is not the model's code."""
    return filename.startswith((_TORCH_ROOT, _PACKAGE_ROOT, "<frozen"))


def is_own_file(filename: str) -> bool:
    """Whether a file belongs to this package."""
    return filename.startswith(_PACKAGE_ROOT)


def forward_code(module: Any) -> CodeType | None:
    """Return the code of a module's forward without its decorators; None if it is not Python."""
    replacement = vars(module).get("forward")
    return _undecorated(type(module).forward if replacement is None else replacement)


def _undecorated(function: Any) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


def is_wrapper(code: CodeType) -> bool:
    """Whether code is a wrapper `(*args, **kwargs)`, a lambda or a comprehension."""
    variadic = code.co_flags & _VARIADIC == _VARIADIC
    return code.co_name.startswith("<") or (variadic and code.co_argcount == 0)


def is_helper(code: CodeType) -> bool:
    """Whether a function can be shown as one operator of its caller.

    A generator or coroutine cannot, because other code runs between its steps; nor can an
    inherited forward.
    """
    is_suspendable = code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE)
    return not is_suspendable and code.co_name != "forward"


def frames_of_call(depth: int) -> list[FrameType]:
    """Return the model code's frames, innermost first, up to the call of the running module.

    Args:
        depth: Number of innermost frames to skip.
    """
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _is_boundary(frame):
        if not is_library_file(frame.f_code.co_filename):
            frames.append(frame)
        frame = frame.f_back
    return frames


def frames_of_caller(depth: int) -> list[FrameType]:
    """Return the model code's frames, innermost first, that called the module about to run.

    Args:
        depth: Number of innermost frames to skip.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code.co_filename != _MODULE_FILE:
        frame = frame.f_back
    frames: list[FrameType] = []
    while frame is not None and not _starts_pass(frame):
        filename = frame.f_code.co_filename
        if filename == _MODULE_FILE:
            if frames:
                break
        elif not is_library_file(filename):
            frames.append(frame)
        frame = frame.f_back
    return frames


def method_of(known: Container[int], end: CodeType, depth: int, *, but: Any = None) -> Any:
    """Return the object of the innermost method that runs and whose object has a known id.

    Args:
        known: Ids of objects.
        end: Code of the function at whose frame the search ends.
        depth: Number of innermost frames to skip.
        but: An object whose methods are skipped.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code is not end:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = local_variables(frame).get("self")
            if id(owner) in known and owner is not but:
                return owner
        frame = frame.f_back
    return None


def running_frames() -> set[int]:
    """Return the ids of all frames of this thread that run now."""
    found: set[int] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found.add(id(frame))
        frame = frame.f_back
    return found


def call_site(depth: int) -> tuple[int, CodeType | None, int]:
    """Return where in the model's code a call was made, as a hashable key.

    Args:
        depth: Number of innermost frames to skip.

    Returns:
        The id of the running module, the calling code (None if unknown) and its line number.
    """
    caller = None
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not _is_boundary(frame):
        if caller is None and not is_library_file(frame.f_code.co_filename):
            caller = frame
        frame = frame.f_back
    module = None if frame is None else frame.f_locals.get("self")
    return (id(module), caller and caller.f_code, 0 if caller is None else caller.f_lineno)


def helper_frames(frames: list[FrameType], forward: CodeType | None) -> Iterator[FrameType]:
    """Yield the frames of functions called by a forward, outermost first.

    Args:
        frames: Frames of one call, innermost first.
        forward: Code of the forward, or None if it is not known.
    """
    inner: list[FrameType] = []
    for frame in frames:
        if frame.f_code is forward:
            break
        inner.append(frame)
    else:
        inner = inner[:-1]
    for frame in reversed(inner):
        if not is_wrapper(frame.f_code):
            yield frame


def local_variables(frame: FrameType) -> dict[str, Any]:
    """Return the local variables of a frame, and let the frame keep no copy of them.

    Before Python 3.13 a function's frame keeps the dict that `f_locals` returns, and so its values
    for longer than the function's own variables do.
    """
    values = dict(frame.f_locals)
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        frame.f_locals.clear()
    return values


def function_name(frame: FrameType) -> str:
    """Return `apply_rotary_pos_emb`, or `DynamicCache.update` for a method."""
    owner = local_variables(frame).get("self")
    name = frame.f_code.co_name
    return name if owner is None else f"{type(owner).__name__}.{name}"


def frame_arguments(frame: FrameType) -> list[object]:
    """Return the arguments of a frame's function, in the order of its signature."""
    code = frame.f_code
    variadic = bool(code.co_flags & inspect.CO_VARARGS) + bool(
        code.co_flags & inspect.CO_VARKEYWORDS
    )
    count = code.co_argcount + code.co_kwonlyargcount + variadic
    values = local_variables(frame)
    return [values[name] for name in code.co_varnames[:count] if name in values]


def source_line(frames: list[FrameType], forward: CodeType | None) -> str | None:
    """Return `file.py:line` of the innermost frame in the file that defines the forward.

    Args:
        frames: Frames of one call, innermost first.
        forward: Code of the forward, or None if it is not known.

    Returns:
        That line, else the line of the innermost frame; None without frames.
    """
    home = forward.co_filename if forward is not None else None
    for frame in frames:
        if frame.f_code.co_filename == home:
            return format_line(frame.f_code, frame.f_lineno)
    return format_line(frames[0].f_code, frames[0].f_lineno) if frames else None


def format_line(code: CodeType | None, number: int) -> str:
    """Return `file.py:line`; `the code` if the code is not known."""
    return f"{os.path.basename(code.co_filename)}:{number}" if code else "the code"
