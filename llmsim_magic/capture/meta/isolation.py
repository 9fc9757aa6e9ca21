"""One model at a time, and without what its caller has switched on in torch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _disable_current_modes

from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.exclusive import ExclusiveLock

_dynamo = torch._C._dynamo.eval_frame
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_module_registration_hooks,
    torch_module._global_parameter_registration_hooks,
    torch_module._global_buffer_registration_hooks,
)

# Building a model sets torch's default dtype, which every thread has in common.
model_lock = ExclusiveLock(
    "a model is being built or run: its own code cannot ask for a trace meanwhile"
)


def default_dtype() -> str:
    """What tensors have where nothing is said, in the whole process, but while a model is built."""
    if torch.get_default_dtype() == torch.float32:
        return "float32"
    with DeferredInterrupt(), model_lock:
        return dtype_name(torch.get_default_dtype())


@contextmanager
def _no_function_modes() -> Iterator[None]:
    modes = [
        torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())
    ]
    try:
        yield
    finally:
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)


@contextmanager
def _no_default_device() -> Iterator[None]:
    ours = torch._GLOBAL_DEVICE_CONTEXT
    device, ours.device_context = ours.device_context, None
    try:
        yield
    finally:
        ours.device_context = device


@contextmanager
def _no_global_hooks() -> Iterator[None]:
    """Hooks on all modules of the process: they hear of other threads alone."""
    kept = [(hooks, dict(hooks)) for hooks in _GLOBAL_HOOKS]
    for hooks in _GLOBAL_HOOKS:
        for key, hook in hooks.items():
            hooks[key] = _elsewhere(hook, get_ident())
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update((key, before[key]) for key in before.keys() & hooks.keys())


def _elsewhere(hook: Callable[..., Any], here: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: None if get_ident() == here else hook(*args, **kwargs)


@contextmanager
def _not_compiled() -> Iterator[None]:
    compiler = _dynamo.set_eval_frame(None)
    try:
        yield
    finally:
        _dynamo.set_eval_frame(compiler)


# What a thread may have switched on, and what switches it off: in the order to do so.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[], AbstractContextManager[Any]]], ...] = (
    (lambda: _dynamo.get_eval_frame_callback() is not None, _not_compiled),
    (
        lambda: torch._C._functorch.peek_interpreter_stack() is not None,
        temporarily_clear_interpreter_stack,
    ),
    (torch._C._len_torch_function_stack, _no_function_modes),
    (lambda: not torch._C._is_torch_function_enabled(), torch._C._EnableTorchFunction),
    (
        lambda: getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None) is not None,
        _no_default_device,
    ),
    (lambda: any(_GLOBAL_HOOKS), _no_global_hooks),
    (torch._C._len_torch_dispatch_stack, _disable_current_modes),
    (torch.is_inference_mode_enabled, lambda: torch.inference_mode(mode=False)),
    (lambda: not torch.is_grad_enabled(), torch.enable_grad),
    (torch._C._is_any_autocast_enabled, torch._C._DisableAutocast),
)


@contextmanager
def isolated() -> Iterator[None]:
    """While open, torch is in this thread as it is in a new one.

    No mode of the caller's hears of what is done here or has a part in it, nor do `autocast`,
    `inference_mode`, `vmap` or a compiler; afterwards each is as it was.
    """
    with DeferredInterrupt(), ExitStack() as aside:
        for is_on, off in _SETTINGS:
            if is_on():
                aside.enter_context(off())
        yield
