"""Collectives of a rank that autograd differentiates: what each sends backward.

A sum of a module's outputs sends nothing backward. What enters a module whose outputs are sharded
has its gradient summed, for each such module, as `transformers` does through DTensor.
"""

from typing import Any

import torch

from llmsim_magic.capture.kernels.collectives import all_gather, all_reduce, concatenate_shards


class _SumOfGradients(torch.autograd.Function):
    """The tensor itself; its gradient is summed over all ranks."""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return all_reduce(gradients[0])


class _Gathered(torch.autograd.Function):
    """The shards of all ranks side by side; each rank has the gradient of its own."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: int, size: int) -> torch.Tensor:
        ctx.width = tensor.shape[-1]
        return concatenate_shards(all_gather(tensor, ranks, size), size)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0][..., : ctx.width], None, None


class _Split(torch.autograd.Function):
    """The first rank's part of a tensor; the gradients of all parts are gathered."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: int, width: int) -> torch.Tensor:
        ctx.ranks, ctx.size = ranks, tensor.shape[-1]
        return tensor[..., :width]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gathered = all_gather(gradients[0], ctx.ranks, ctx.size)
        return concatenate_shards(gathered, ctx.size), None, None


def sum_gradients(value: Any) -> Any:
    """Sum the gradient of a tensor over all ranks; anything without a gradient is left as it is."""
    if not isinstance(value, torch.Tensor) or not _has_gradient(value):
        return value
    return _SumOfGradients.apply(value)


def gathered(tensor: torch.Tensor, ranks: int, size: int) -> torch.Tensor:
    """Gather the shards of a tensor that is split along its last dimension.

    Args:
        tensor: This rank's shard.
        ranks: Number of ranks.
        size: Size of the last dimension of the whole tensor, in elements.
    """
    if _has_gradient(tensor):
        whole: torch.Tensor = _Gathered.apply(tensor, ranks, size)
        return whole
    return concatenate_shards(all_gather(tensor, ranks, size), size)


def split(tensor: torch.Tensor, ranks: int, width: int) -> torch.Tensor:
    """The first rank's part of a tensor's last dimension, as a view."""
    if _has_gradient(tensor):
        part: torch.Tensor = _Split.apply(tensor, ranks, width)
        return part
    return tensor[..., :width]


def sum_gradient_of(parameter: torch.nn.Parameter) -> None:
    """Sum a parameter's gradient over all ranks once backward has computed it."""
    if parameter.requires_grad:
        parameter.register_post_accumulate_grad_hook(_sum_gradient)


def _sum_gradient(parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        all_reduce(parameter.grad)


def _has_gradient(tensor: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad
