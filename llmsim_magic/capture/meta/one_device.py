"""Run functions of torch that refuse tensors on two devices, or that name an accelerator.

Known values are on the host and everything else is on `meta`. Single kernels never see both, but a
composite operator, such as `stft` or `quantile`, compares the devices of its arguments before
torch decomposes it into kernels.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels.tensors import tensors_in

META = torch.device("meta")
_TRACED = frozenset({"cpu", "meta"})
_ACCELERATORS = ("cuda", "xpu", "mps", "hpu", "mtia", "npu", "xla", "privateuseone")
_MOVES = frozenset(
    getattr(torch.Tensor, name) for name in _ACCELERATORS if hasattr(torch.Tensor, name)
)


def without_accelerator(
    func: Any, args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Replace the accelerator that a call names, as in `x.to("cuda")`, by `meta`.

    A trace shows a model on one device, and any accelerator is that device. Host memory is not
    pinned, because only an accelerator's allocator can.

    Args:
        func: The torch function that is called.
        args: Its positional arguments.
        keywords: Its keyword arguments.

    Returns:
        The function and arguments to call instead.
    """
    if func in _MOVES:
        return torch.Tensor.to, (args[0], META), {}
    if func is torch.Tensor.pin_memory:
        return torch.Tensor.to, (args[0], args[0].device), {}
    if keywords.get("pin_memory"):
        keywords = {**keywords, "pin_memory": False}
    if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
        args = (args[0], META, *args[2:])
    elif any(map(_is_accelerator, args)):
        args = tuple(META if _is_accelerator(value) else value for value in args)
    device = keywords.get("device")
    if device is not None and (type(device) is int or _is_accelerator(device)):
        keywords = {**keywords, "device": META}
    return func, args, keywords


def _is_accelerator(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type not in _TRACED
    return type(value) is str and value.partition(":")[0] in _ACCELERATORS


def visible_composites() -> AbstractContextManager[Any]:
    """Show composite operators to dispatch modes before torch decomposes them.

    Torch decomposes them while it dispatches for autograd, which a traced pass does not need.
    """
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowAutograd()
    return guard


def decompose(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    move: Callable[[torch.Tensor], torch.Tensor],
) -> Any:
    """Decompose a composite operator; if it refuses tensors on two devices, on `meta`.

    Args:
        func: The `OpOverload` that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        move: Called with each known tensor; returns it on `meta`.

    Returns:
        Its result, or `NotImplemented` if it cannot be decomposed.

    Raises:
        RuntimeError: The operator failed for another reason.
    """
    try:
        return func.decompose(*args, **kwargs)
    except RuntimeError:
        if len({tensor.is_meta for tensor in tensors_in((args, kwargs))}) < 2:
            raise

    def moved(value: Any) -> Any:
        is_known = isinstance(value, torch.Tensor) and not value.is_meta
        return move(value) if is_known else value

    args, kwargs = tree_map(moved, (args, dict(kwargs)))
    return func.decompose(*args, **kwargs)


def without_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on `meta` like one on the host, unseen by dispatch modes."""
    with torch._C._DisableTorchDispatch():
        return tensor.to(META)
