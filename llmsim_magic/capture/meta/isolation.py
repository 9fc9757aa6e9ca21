"""Isolate a pass from the caller's torch modes, hooks and autocast; run one model at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
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
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)

# Building a model sets torch's default dtype, which all threads share.
model_lock = ExclusiveLock(
    "the code of a model cannot start a trace while a model is being built or run"
)


def default_dtype() -> str:
    """Return the name of torch's default dtype, waiting for a model that is being built."""
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
    context = torch._GLOBAL_DEVICE_CONTEXT
    device, context.device_context = context.device_context, None
    try:
        yield
    finally:
        context.device_context = device


@contextmanager
def _no_global_hooks() -> Iterator[None]:
    """Disables global hooks of modules and optimizers in this thread; other threads keep them."""
    saved = [(hooks, dict(hooks)) for hooks in _GLOBAL_HOOKS]
    for hooks in _GLOBAL_HOOKS:
        for key, hook in hooks.items():
            hooks[key] = _in_other_threads(hook, get_ident())
    try:
        yield
    finally:
        for hooks, before in saved:
            hooks.update((key, before[key]) for key in before.keys() & hooks.keys())


def _in_other_threads(hook: Callable[..., Any], this: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: None if get_ident() == this else hook(*args, **kwargs)


@contextmanager
def _no_compiler() -> Iterator[None]:
    callback = _dynamo.set_eval_frame(None)
    try:
        yield
    finally:
        _dynamo.set_eval_frame(callback)


# For each setting of a thread: whether it is on, and a context manager that turns it off.
# The order matters.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[], AbstractContextManager[Any]]], ...] = (
    (lambda: _dynamo.get_eval_frame_callback() is not None, _no_compiler),
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
    """Disable the caller's torch modes, hooks, autocast, inference mode, vmap and compiler.

    They apply to neither this thread's code nor its tensors while the context is open, and are
    restored on exit. Interrupts are deferred meanwhile.
    """
    with DeferredInterrupt(), ExitStack() as disabled:
        for is_on, turned_off in _SETTINGS:
            if is_on():
                disabled.enter_context(turned_off())
        yield
