"""Tensors with known values that a model itself declares to require a gradient.

They are on the host, and their gradients, which depend on data, on `meta`: autograd refuses that.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmsim_magic.capture.meta.one_device import without_values

_SET = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]
_DECLARE = (_SET, torch.Tensor.requires_grad_)
Move = Callable[[torch.Tensor], torch.Tensor]


def declared_leaf(
    func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the tensor on the host that a call declares to require a gradient; else None."""
    if func not in _DECLARE or not torch.is_grad_enabled():
        return None
    tensor = args[0]
    is_wanted = keywords.get("requires_grad", args[1] if len(args) > 1 else True)
    return tensor if is_wanted and tensor.is_leaf and not tensor.is_meta else None


def is_made_as_leaf(keywords: Mapping[str, Any]) -> bool:
    """Whether a call, such as `torch.zeros`, makes a tensor that requires a gradient."""
    return keywords.get("requires_grad") is True and torch.is_grad_enabled()


def moved_to_meta(tensor: torch.Tensor, move: Move | None) -> None:
    """Move a tensor on the host to `meta` in its place, if nothing of torch refers to it yet.

    Args:
        tensor: The tensor; all variables that refer to it see it move.
        move: Returns it on `meta`; None if nothing is recorded.
    """
    moved = (move or without_values)(tensor)
    try:
        torch._C._swap_tensor_impl(tensor, moved)
    except RuntimeError:  # a view of it, or autograd, has it too
        return
