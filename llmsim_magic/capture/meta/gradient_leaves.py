"""Move tensors with known values from the host to `meta` where autograd gives them a gradient.

A gradient depends on data and is on `meta`, and autograd refuses it for a tensor on the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import tensors_in

_DECLARE = (
    torch.Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
    torch.Tensor.requires_grad_,
)
Move = Callable[[torch.Tensor], torch.Tensor]


def gets_gradient(
    func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the tensor on the host that a call makes autograd compute a gradient of, or None.

    It is declared to require one, or what requires one is written into it.
    """
    if not args or not torch.is_grad_enabled():
        return None
    tensor = args[0]
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or not tensor.is_floating_point():
        return None
    if func in _DECLARE:
        is_wanted = keywords.get("requires_grad", args[1] if len(args) > 1 else True)
        return tensor if is_wanted and tensor.is_leaf else None
    return tensor if _writes(func) and needs_gradient((args[1:], keywords)) else None


def needs_gradient(values: Any) -> bool:
    """Whether any tensor in nested values requires a gradient."""
    return any(tensor.requires_grad for tensor in tensors_in(values))


def _writes(func: Any) -> bool:
    """Whether a function writes into its first argument, by the convention of its name."""
    name = str(getattr(func, "__name__", ""))
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return name.endswith("_")


def is_made_as_leaf(keywords: Mapping[str, Any]) -> bool:
    """Whether a call, such as `torch.zeros`, makes a tensor that requires a gradient."""
    return keywords.get("requires_grad") is True and torch.is_grad_enabled()


def move_in_place(tensor: torch.Tensor, move: Move) -> None:
    """Move a tensor on the host to `meta`; all variables that refer to it see it move.

    Of a view, the tensor that it views moves as well.

    Args:
        tensor: The tensor.
        move: Returns a tensor on `meta`.
    """
    base = tensor._base
    if base is None:
        moved = move(tensor)
    else:
        if not base.is_meta:
            move_in_place(base, move)
        with torch._C._DisableTorchDispatch():
            moved = base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    torch._C._swap_tensor_impl(tensor, moved)


def is_in_backward() -> bool:
    """Whether a derivative runs, whose results are on `meta`; not what backward recomputes."""
    return not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None
