"""Apply `torch.autocast` to tensors on `meta`, as it acts on those of a CUDA device.

torch has no autocast for `meta`. Here a region of `torch.autocast` for any device is one for the
device of the trace. Which operators are cast is in `autocast_policies.py`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch.amp import autocast_mode
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import _get_current_function_mode_stack

from llmsim_magic.capture.autocast.autocast_policies import (
    DISPATCH_DEVICE,
    Casts,
    applying_policies,
    without_policies,
)
from llmsim_magic.capture.kernels.fused_kernels import RECURRENT

# Devices for which model code asks whether autocast is on: `torch.utils.checkpoint` asks for the
# CPU, `torch.is_autocast_enabled()` for CUDA. `DISPATCH_DEVICE` turns the policies on and off.
_DEVICES = ("cpu", "cuda", DISPATCH_DEVICE)
_CPU = torch.device("cpu")
# Calls between the code that reads the device of a module and the read of a tensor's device.
_INNER_FRAMES = ("__torch_function__", "device", "get_parameter_device", "<genexpr>")


@contextmanager
def autocasting(dtype: torch.dtype) -> Iterator[None]:
    """Run the code in this context as under `torch.autocast("cuda", dtype)`, on `meta`.

    Casts of parameters are kept until the outermost region ends. Regions that model code opens
    inside, such as `torch.autocast(device_type, enabled=False)`, act too.

    Args:
        dtype: The lower precision: `torch.bfloat16` or `torch.float16`.

    Raises:
        RuntimeError: An operator is called that is unsafe to autocast.
    """
    if any(isinstance(mode, _AutocastMode) for mode in _get_current_function_mode_stack()):
        with torch.autocast("cpu", dtype):
            yield
    else:
        with autocast_on_meta(), torch.autocast("cpu", dtype):
            yield


@contextmanager
def autocast_on_meta() -> Iterator[None]:
    """Let regions of `torch.autocast` act on tensors on `meta`, in this thread.

    A step whose backward runs layers again (activation checkpointing) runs in this context as a
    whole, and its forward in `autocasting`: `torch.utils.checkpoint` opens a region like that of
    the forward around each layer that it runs again. Backward runs with function modes on, so not
    through `Tensor.backward`, which turns them off.
    """
    before = [_state(device) for device in _DEVICES]
    mode = _AutocastMode()
    try:
        with applying_policies(mode.casts), mode:
            yield
    finally:
        for device, state in zip(_DEVICES, before, strict=True):
            _set_state(device, *state)


_State = tuple[bool, torch.dtype]  # whether autocast is enabled, and its lower precision


def _state(device: str) -> _State:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_state(device: str, is_enabled: bool, dtype: torch.dtype) -> None:
    torch.set_autocast_enabled(device, is_enabled)
    torch.set_autocast_dtype(device, dtype)


class _AutocastMode(PreDispatchTorchFunctionMode):
    """Follows the regions of autocast; torch tells them to modes of the base class alone.

    Beside that, it casts the arguments of the functions that the modes below compute themselves,
    without calling their operator, and names a device that has autocast to code which asks.
    """

    def __init__(self) -> None:
        self.casts = Casts()
        self._before = [_state(device) for device in _DEVICES]
        self._regions: list[_State] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, args, kwargs or {})

    def enter_region(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that a region begins: `args` are its device, dtype, `enabled`, `cache_enabled`."""
        _, dtype, is_enabled, _ = args
        self._regions.append((is_enabled, dtype))
        self._set_states([self._regions[-1]] * len(_DEVICES))

    def leave_region(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that the innermost region has ended."""
        self._regions.pop()
        if self._regions:
            self._set_states([self._regions[-1]] * len(_DEVICES))
        else:
            self._set_states(self._before)
            self.casts.forget()

    def _set_states(self, states: list[_State]) -> None:
        for device, state in zip(_DEVICES, states, strict=True):
            _set_state(device, *state)
        self.casts.dtype = states[0][1]

    def cast_attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run attention on arguments in the lower precision."""
        return self._run_in(self.casts.dtype, func, args, kwargs)

    def cast_recurrent(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a recurrent layer as by cuDNN, whose kernel torch casts to float16 alone."""
        return self._run_in(torch.float16, func, args, kwargs)

    def _run_in(self, dtype: torch.dtype, func: Any, args: Any, kwargs: Any) -> Any:
        if not torch.is_autocast_enabled(DISPATCH_DEVICE):
            return func(*args, **kwargs)
        args, kwargs = self.casts.cast(args, dtype), self.casts.cast(kwargs, dtype)
        with without_policies():
            return func(*args, **kwargs)

    def device(self, func: Any, args: Any, kwargs: Any) -> torch.device:
        """The device of a tensor; to code that asks for autocast, one that has it."""
        frame = sys._getframe(2)
        while frame.f_code.co_name in _INNER_FRAMES and frame.f_back is not None:
            frame = frame.f_back
        if frame.f_code is autocast_mode._cast.__code__:
            return torch.device(frame.f_locals["device_type"])
        found: torch.device = _CPU if _names_autocast(frame.f_code) else func(*args)
        return found


@lru_cache(maxsize=4096)
def _names_autocast(code: CodeType) -> bool:
    return any("autocast" in name for name in code.co_names + code.co_freevars)


_HANDLERS: dict[Any, Callable[[_AutocastMode, Any, Any, Any], Any]] = {
    autocast_mode._enter_autocast: _AutocastMode.enter_region,
    autocast_mode._exit_autocast: _AutocastMode.leave_region,
    torch.Tensor.device.__get__: _AutocastMode.device,
    scaled_dot_product_attention: _AutocastMode.cast_attention,
    **dict.fromkeys(RECURRENT, _AutocastMode.cast_recurrent),
}
