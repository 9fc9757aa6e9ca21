"""Functions for which a GPU has one kernel with a derivative of its own: attention and dropout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llmsim_magic.capture.kernels.fused_kernels import AttentionArguments

aten = torch.ops.aten
_HALF = (torch.bfloat16, torch.float16)
_FLASH_WIDTH = 256  # the widest head of torch's flash attention
_MASK_ALIGNMENT = 16  # elements to which the efficient kernel pads the rows of a mask


def fused_attention(arguments: AttentionArguments) -> Callable[[], tuple[torch.Tensor, ...]] | None:
    """Choose the one kernel, with a derivative of its own, by which a GPU attends.

    As `sdp_utils.cpp` of torch selects on devices from Ampere on: flash attention for half
    precision without a mask, memory-efficient attention for other dtypes and for masks. cuDNN,
    which the newest devices prefer, keeps the same tensors for backward.

    Args:
        arguments: What `scaled_dot_product_attention` was called with. Where the kernel takes
            another layout, the tensors are brought into it by kernels of their own.

    Returns:
        A function that runs the kernel and returns the output `[..., heads, tokens, d_value]`, and
        what is kept for backward beside it; None if plain matmuls compute it.
    """
    query, key, value = arguments.query, arguments.key, arguments.value
    if query.dim() != 4 or not _is_wide_enough(query, value):
        return None
    dropout, is_causal, scale = arguments.dropout_p, arguments.is_causal, arguments.scale
    if query.dtype in _HALF and arguments.attn_mask is None and query.shape[-1] <= _FLASH_WIDTH:
        return lambda: aten._scaled_dot_product_flash_attention(
            query, key, value, dropout, is_causal, scale=scale
        )[:2]
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    mask = None if arguments.attn_mask is None else _bias(arguments.attn_mask, query, key)
    return lambda: aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, dropout, is_causal, scale=scale
    )[:2]


def _is_wide_enough(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernels take the widths of the heads: equal, and aligned to 16 bytes."""
    width = query.shape[-1]
    return width == value.shape[-1] and width % (16 // query.element_size()) == 0


def _bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The mask as the efficient kernel reads it: added, in the query's dtype, rows aligned."""
    if mask.dtype is torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=mask.device)
        mask = torch.where(mask, zero, float("-inf"))
    keys = mask.shape[-1]
    if keys % _MASK_ALIGNMENT:
        mask = torch.nn.functional.pad(mask, (0, -keys % _MASK_ALIGNMENT))[..., :keys]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def plain_attention(arguments: AttentionArguments) -> torch.Tensor:
    """Attend by matmuls and a softmax, which are recorded one by one."""
    output: torch.Tensor = aten._scaled_dot_product_attention_math(
        arguments.query,
        arguments.key,
        arguments.value,
        arguments.attn_mask,
        arguments.dropout_p,
        arguments.is_causal,
        scale=arguments.scale,
        enable_gqa=arguments.enable_gqa,
    )[0]
    return output


def _dropout(
    input: torch.Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    """Dropout that keeps a mask of one byte an element for backward, as on a GPU."""
    if inplace or not training or not 0 < p < 1 or not input.numel():
        return torch._VF.dropout_(input, p, training) if inplace else input
    return torch.native_dropout(input, p, training)[0]


REPLACED: Mapping[Any, Callable[..., Any]] = {torch.nn.functional.dropout: _dropout}


def replaced(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Compute a function of `REPLACED` as a GPU's own kernel does."""
    return REPLACED[func](*args, **kwargs)
