"""Run functions of torch that refuse tensors on two devices.

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
