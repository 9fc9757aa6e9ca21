"""Kernels by which libraries other than torch update parameters, recorded but never executed.

Each is an overridable torch function, so that the recorder sees it as a single kernel. On `meta`
there is nothing to compute: it writes its arguments in place.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

UpdateKernel = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None]
KERNELS: dict[Any, str] = {}  # each function below, and the name of the real kernel


def _update_kernel(kernel: str) -> Callable[[UpdateKernel], UpdateKernel]:
    """Makes a function visible to torch function modes and registers its kernel name."""

    def decorate(function: UpdateKernel) -> UpdateKernel:
        @wraps(function)
        def overridable(updated: Sequence[torch.Tensor], read: Sequence[torch.Tensor]) -> None:
            if has_torch_function((*updated, *read)):
                handle_torch_function(overridable, (*updated, *read), updated, read)
            else:
                function(updated, read)

        KERNELS[overridable] = kernel
        return overridable

    return decorate


@_update_kernel("bitsandbytes.optimizer_update_8bit_blockwise.default")
def update_8bit_blockwise(updated: Sequence[torch.Tensor], read: Sequence[torch.Tensor]) -> None:
    """Update a parameter whose states are quantized to 8 bits in blocks of 256 elements.

    Args:
        updated: What is read and written: the parameter, its states in uint8 and, for each state,
            the largest magnitude of each block in float32 `[ceil(elements / 256)]`.
        read: What is only read: the gradient, and for each state the 256 float32 values that its
            bytes stand for.
    """


@_update_kernel("bitsandbytes.optimizer_update_32bit.default")
def update_32bit(updated: Sequence[torch.Tensor], read: Sequence[torch.Tensor]) -> None:
    """Update a parameter whose states are float32.

    Args:
        updated: What is read and written: the parameter and its states.
        read: What is only read: the gradient.
    """
