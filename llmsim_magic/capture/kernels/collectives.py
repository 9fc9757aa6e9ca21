"""What ranks hand each other, as functions that a pass is seen to call; nothing is sent.

Each is a torch function of its own, so that the tracer notes it whole, as one kernel.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

Collective = Callable[..., torch.Tensor]
KERNELS: dict[Any, str] = {}  # each function, and the kernel of torch's that it stands for


def _collective(kernel: str) -> Callable[[Collective], Collective]:
    def heard(function: Collective) -> Collective:
        @wraps(function)
        def called(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
            if has_torch_function((tensor,)):
                answer: torch.Tensor = handle_torch_function(called, (tensor,), tensor, *args)
                return answer
            return function(tensor, *args)

        KERNELS[called] = kernel
        return called

    return heard


@_collective("c10d.allreduce_.default")
def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place."""
    return tensor


@_collective("c10d.allgather_.default")
def all_gather(tensor: torch.Tensor, ranks: int, size: int) -> torch.Tensor:
    """Each rank's part of the last dimension, which is of `size` in all, one after another.

    The parts arrive as `[ranks, …]`; who needs them side by side copies them.
    """
    part = -(-size // ranks)
    return tensor.new_empty((ranks, *tensor.shape[:-1], part))


@_collective("c10d.send.default")
def send(tensor: torch.Tensor) -> torch.Tensor:
    """To the next stage."""
    return tensor


@_collective("c10d.recv_.default")
def receive(ids: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """From the stage before: a vector of `width` for each of the ids."""
    return ids.new_empty((*ids.shape, width), dtype=dtype, device=torch.device("meta"))


def side_by_side(parts: torch.Tensor, size: int) -> torch.Tensor:
    """What was gathered as one last dimension, copied; a rank's filling is cut off."""
    together = parts.movedim(0, -2).flatten(-2)
    return together[..., :size]
