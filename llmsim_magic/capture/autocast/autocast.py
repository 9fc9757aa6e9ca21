"""Apply `torch.autocast` to tensors on `meta`, as it acts on those of a CUDA device.

torch has no autocast for `meta`. Here a region of `torch.autocast` for any device is one for the
device of the trace. Which operators are cast is in `autocast_policies.py`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch.amp import autocast_mode
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from llmsim_magic.capture.autocast.autocast_policies import (
    DISPATCH_DEVICE,
    Casts,
    applying_policies,
    without_policies,
)
from llmsim_magic.capture.autocast.requested_regions import is_requested, noting_requests
from llmsim_magic.capture.kernels.fused_kernels import RECURRENT

# Devices for which model code asks whether autocast is on: `torch.utils.checkpoint` asks for the
# CPU, `torch.is_autocast_enabled()` for CUDA. `DISPATCH_DEVICE` turns the policies on and off.
_DEVICES = ("cpu", "cuda", DISPATCH_DEVICE)
_CUDA = torch.device("cuda")
# Calls between the code that reads the device of a module and the read of a tensor's device.
_INNER_FRAMES = frozenset(
    {"__torch_function__", "_asking_frame", "device", "is_cuda", "get_parameter_device"}
) | {"<genexpr>"}

AutocastState = tuple[bool, torch.dtype, bool]


def autocast_state() -> AutocastState:
    """Whether autocast acts on this thread's traced tensors, its lower precision, its cache."""
    return (*_state(DISPATCH_DEVICE), torch.is_autocast_cache_enabled())


def keeps_casts(module: torch.nn.Module) -> bool:
    """Whether autocast keeps casts of a module's parameters for longer than a call of it now."""
    is_enabled, _, is_cached = autocast_state()
    return (
        is_enabled
        and is_cached
        and any(each.dtype is torch.float32 and each.requires_grad for each in module.parameters())
    )


_State = tuple[bool, torch.dtype]  # whether autocast is enabled, and its lower precision


def _state(device: str) -> _State:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_state(device: str, is_enabled: bool, dtype: torch.dtype) -> None:
    torch.set_autocast_enabled(device, is_enabled)
    torch.set_autocast_dtype(device, dtype)


class AutocastMode(TorchFunctionMode):
    """Follows the regions of autocast.

    It casts the arguments of the functions that no operator computes, because they are recorded as
    one kernel, and names a CUDA device to code that asks for autocast.
    """

    def __init__(self) -> None:
        self.casts = Casts()
        self._outside = [_state(device) for device in _DEVICES]
        self._regions: list[_State] = []
        self._policies = ExitStack()
        self._is_applying = False

    @contextmanager
    def following_regions(self) -> Iterator[None]:
        """Let regions of autocast act in this context, in which this mode is on.

        Casts of parameters are kept until an outermost region ends. A region that backward opens,
        such as `torch.utils.checkpoint` around each layer that it runs again, acts too: such a
        backward runs with function modes on, so not through `Tensor.backward`, which turns them
        off. Afterwards autocast is as it was before, whatever happened in the context.
        """
        before = [_state(device) for device in _DEVICES]
        keeps_casts, nesting = torch.is_autocast_cache_enabled(), _nesting()
        # `torch.autocast` for a device that is not named has the default dtype of CUDA.
        self._outside = [(is_enabled, before[1][1]) for is_enabled, _ in before]
        try:
            self._set_states(self._outside)
            with noting_requests(), _RegionMode(self):
                yield
        finally:
            self._end_regions()
            for device, state in zip(_DEVICES, before, strict=True):
                _set_state(device, *state)
            torch.set_autocast_cache_enabled(keeps_casts)
            for _ in range(_nesting() - nesting):  # of regions that were never left
                torch.autocast_decrement_nesting()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        handler, keywords = _HANDLERS.get(func), dict(kwargs or {})
        if handler is None:
            return self.call(func, types, args, keywords)
        return handler(self, func, types, args, keywords)

    def call(self, func: Any, types: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Call a function with its arguments."""
        return func(*args, **keywords)

    def note_casts(self, tensors: list[torch.Tensor]) -> None:
        """Note the casts of parameters that were kept until now, as their region ends."""

    def enter_region(self, dtype: torch.dtype, *, is_enabled: bool) -> None:
        """Note that a region of a lower precision begins."""
        if is_enabled and not self._is_applying:
            self._policies.enter_context(applying_policies(self.casts))
            self._is_applying = True
        self._regions.append((is_enabled, dtype))
        self._set_states([self._regions[-1]] * len(_DEVICES))

    def leave_region(self) -> None:
        """Note that the innermost region has ended."""
        if self._regions:
            self._regions.pop()
        if self._regions:
            self._set_states([self._regions[-1]] * len(_DEVICES))
        else:
            self._end_regions()

    def _end_regions(self) -> None:
        self._regions.clear()
        if kept := self.casts.kept:
            self.note_casts(kept)
        del kept
        self._policies.close()
        self._is_applying = False
        self.casts.forget()
        self._set_states(self._outside)

    def _set_states(self, states: list[_State]) -> None:
        for device, state in zip(_DEVICES, states, strict=True):
            _set_state(device, *state)
        self.casts.dtype = states[0][1]

    def cast_attention(self, func: Any, types: Any, args: Any, keywords: Any) -> Any:
        """Run attention on arguments in the lower precision."""
        return self._run_in(self.casts.dtype, func, types, args, keywords)

    def cast_recurrent(self, func: Any, types: Any, args: Any, keywords: Any) -> Any:
        """Run a recurrent layer as by cuDNN, whose kernel torch casts to float16 alone."""
        return self._run_in(torch.float16, func, types, args, keywords)

    def _run_in(
        self, dtype: torch.dtype, func: Any, types: Any, args: Any, keywords: dict[str, Any]
    ) -> Any:
        if not torch.is_autocast_enabled(DISPATCH_DEVICE):
            return self.call(func, types, args, keywords)
        with self:  # a cast is a function of its own
            args, keywords = self.casts.cast(args, dtype), self.casts.cast(keywords, dtype)
        with without_policies():
            return self.call(func, types, args, keywords)

    def device(self, func: Any, types: Any, args: Any, keywords: Any) -> torch.device:
        """The device of a tensor; to code that asks for autocast, one that has it."""
        asking = _asking_frame()
        if asking.f_code is autocast_mode._cast.__code__:
            return torch.device(asking.f_locals["device_type"])
        if _names_autocast(asking.f_code):
            return _CUDA
        found: torch.device = self.call(func, types, args, keywords)
        return found

    def is_cuda(self, func: Any, types: Any, args: Any, keywords: Any) -> bool:
        """Whether a tensor is on a CUDA device; to code that asks for autocast it is."""
        if _names_autocast(_asking_frame().f_code):
            return True
        found: bool = self.call(func, types, args, keywords)
        return found


class _RegionMode(PreDispatchTorchFunctionMode):
    """Tells another mode of the regions, of which torch tells modes of the base class alone.

    The other mode is not of that class, because torch turns such modes off where it calls
    higher-order operators.
    """

    def __init__(self, follower: AutocastMode) -> None:
        self._follower = follower

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is autocast_mode._enter_autocast:
            _, dtype, is_enabled, _ = args
            is_enabled = is_enabled or is_requested(sys._getframe(1))
            return self._follower.enter_region(dtype, is_enabled=is_enabled)
        if func is autocast_mode._exit_autocast:
            return self._follower.leave_region()
        return func(*args, **(kwargs or {}))


def _nesting() -> int:
    """How many regions of autocast are open in this thread."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _asking_frame() -> FrameType:
    """The frame of the code that reads an attribute of a tensor."""
    frame = sys._getframe(1)
    while frame.f_code.co_name in _INNER_FRAMES and frame.f_back is not None:
        frame = frame.f_back
    return frame


@lru_cache(maxsize=4096)
def _names_autocast(code: CodeType) -> bool:
    return any("autocast" in name for name in code.co_names + code.co_freevars)


_Handler = Callable[[AutocastMode, Any, Any, Any, Any], Any]
_HANDLERS: dict[Any, _Handler] = {
    torch.Tensor.device.__get__: AutocastMode.device,
    vars(torch._C.TensorBase)["is_cuda"].__get__: AutocastMode.is_cuda,
    scaled_dot_product_attention: AutocastMode.cast_attention,
    **dict.fromkeys(RECURRENT, AutocastMode.cast_recurrent),
}
