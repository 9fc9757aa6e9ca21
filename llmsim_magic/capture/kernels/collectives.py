"""Collective operations of parallel ranks, recorded but never executed.

Each is an overridable torch function, so that the recorder sees it as a single kernel. It returns
a tensor with the shape and dtype of the real result and sends nothing.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

Collective = Callable[..., torch.Tensor]
KERNELS: dict[Any, str] = {}  # each function below, and the name of the real kernel


def _collective(kernel: str) -> Callable[[Collective], Collective]:
    """Makes a function visible to torch function modes and registers its kernel name."""

    def decorate(function: Collective) -> Collective:
        @wraps(function)
        def overridable(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
            if has_torch_function((tensor,)):
                result: torch.Tensor = handle_torch_function(overridable, (tensor,), tensor, *args)
                return result
            return function(tensor, *args)

        KERNELS[overridable] = kernel
        return overridable

    return decorate


@_collective("c10d.allreduce_.default")
def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place.

    Args:
        tensor: This rank's summand, of any shape.

    Returns:
        The same tensor.
    """
    return tensor


@_collective("c10d.allgather_.default")
def all_gather(tensor: torch.Tensor, ranks: int, size: int) -> torch.Tensor:
    """Gather the shards of a tensor that is split along its last dimension.

    Args:
        tensor: This rank's shard.
        ranks: Number of ranks.
        size: Size of the last dimension of the whole tensor, in elements.

    Returns:
        The shards stacked along a new first dimension, `[ranks, ..., ceil(size / ranks)]`;
        `concatenate_shards` makes one last dimension of them.
    """
    shard = -(-size // ranks)
    return tensor.new_empty((ranks, *tensor.shape[:-1], shard))


@_collective("c10d.send.default")
def send(tensor: torch.Tensor) -> torch.Tensor:
    """Send a tensor to the next pipeline stage.

    Args:
        tensor: Hidden states `[batch, tokens, width]`.

    Returns:
        The same tensor.
    """
    return tensor


@_collective("c10d.recv_.default")
def receive(ids: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Receive hidden states from the previous pipeline stage.

    Args:
        ids: Token ids `[batch, tokens]`; only their shape is used.
        width: Hidden size, in elements.
        dtype: Dtype of the hidden states.

    Returns:
        Hidden states `[batch, tokens, width]` on `meta`.
    """
    return ids.new_empty((*ids.shape, width), dtype=dtype, device=torch.device("meta"))


def concatenate_shards(shards: torch.Tensor, size: int) -> torch.Tensor:
    """Concatenate gathered shards along the last dimension; this copies.

    Args:
        shards: Result of `all_gather`, `[ranks, ..., shard]`.
        size: Size of the last dimension of the whole tensor; padding beyond it is cut off.

    Returns:
        The whole tensor, `[..., size]`.
    """
    merged = shards.movedim(0, -2).flatten(-2)
    return merged[..., :size]
