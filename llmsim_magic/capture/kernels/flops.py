"""FLOPs of kernels; a multiply-add counts as two.

The formulas are those of `torch.utils.flop_counter`; this module adds the ones torch lacks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from llmsim_magic.capture.kernels.fused_kernels import AttentionArguments, RecurrentArguments


def kernel_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Return the FLOPs of a kernel call.

    Args:
        func: The `OpOverload` that was called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: Its result.

    Returns:
        The FLOPs, or None for a kernel without a formula.
    """
    packet = func._overloadpacket
    if packet in _ATTENTION_BACKWARD:
        return _attention_backward_flops(*args[:4])
    if packet in _ADDED_FORMULAS:
        return _ADDED_FORMULAS[packet](*args[:2])
    formula = flop_registry.get(packet)
    if formula is None:
        return None
    if getattr(formula, "_get_raw", False) or not hasattr(formula, "__wrapped__"):
        return int(formula(*args, **kwargs, out_val=out))
    # torch's wrapper only replaces tensors by their shapes, but takes longer than the kernel
    shapes, named, out_shape = _shapes((args, dict(kwargs), out))
    return int(formula.__wrapped__(*shapes, **named, out_shape=out_shape))


def _shapes(value: Any) -> Any:
    """The value with the shape of each tensor in nested tuples, lists and dicts in its place."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_shapes(item) for item in value])
    if kind is dict:
        return {name: _shapes(item) for name, item in value.items()}
    return value.shape if isinstance(value, torch.Tensor) else value


def _grouped_matmul(rows: torch.Tensor, weights: torch.Tensor) -> int:
    """2 · rows · k · n, for rows `[rows, k]` and weights `[groups, k, n]`.

    Each row is multiplied by the matrix of one group, so the split into groups does not matter.
    """
    return 2 * rows.shape[-2] * rows.shape[-1] * weights.shape[-1]


def _matrix_vector(matrix: torch.Tensor, vector: torch.Tensor) -> int:
    """2 · m · k, for `[m, k] × [k]`."""
    return 2 * matrix.shape[0] * matrix.shape[1]


def _dot(one: torch.Tensor, other: torch.Tensor) -> int:
    """2 · k, for `[k] · [k]`."""
    return 2 * one.shape[0]


def _recurrent_backward(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> int:
    """Twice a recurrent layer's own: gradients of its inputs and states, and of its weights."""
    return 2 * _recurrent(rows, weights)


def _recurrent(rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> int:
    """2 · steps of all samples · elements of all matrices."""
    steps = math.prod(rows.shape[:-1])
    return sum(2 * steps * weight.numel() for weight in weights if weight.dim() == 2)


_ADDED_FORMULAS: dict[Any, Callable[[Any, Any], int]] = {
    torch.ops.aten._cudnn_rnn_backward: _recurrent_backward,
    torch.ops.aten._grouped_mm: _grouped_matmul,
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _dot,
    torch.ops.aten.vdot: _dot,
}


def attention_flops(arguments: AttentionArguments) -> int:
    """Return the FLOPs of both matmuls of attention; a causal mask does not lower them.

    Leading dimensions beyond batch and heads are folded into batch. With grouped-query attention
    every query head counts; older versions of torch's formula accept only equal head counts.

    Args:
        arguments: What `scaled_dot_product_attention` was called with.
    """

    def as_4d(tensor: torch.Tensor) -> tuple[int, ...]:
        padded = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
        return (math.prod(padded[:-3]), *padded[-3:])

    q, k, v = as_4d(arguments.query), as_4d(arguments.key), as_4d(arguments.value)
    return int(sdpa_flop_count(q, (*q[:2], *k[2:]), (*q[:2], *v[2:])))


_ATTENTION_BACKWARD = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
        torch.ops.aten._scaled_dot_product_efficient_attention_backward,
        torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
    }
)


def _attention_backward_flops(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> int:
    """The FLOPs of the five matmuls of attention's backward; every query head counts.

    Older versions of torch's formula accept only equal head counts.
    """
    q, k, v = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    return int(
        sdpa_backward_flop_count(tuple(gradient.shape), q, (*q[:2], *k[2:]), (*q[:2], *v[2:]))
    )


def recurrent_flops(arguments: RecurrentArguments) -> int:
    """Return the FLOPs of a recurrent layer: 2 · steps of all samples · elements of all matrices.

    Shapes: `weight_ih` `[gates · hidden, width]`, `weight_hh` `[gates · hidden, hidden]`.

    Args:
        arguments: What the layer's function was called with.
    """
    return _recurrent(arguments.input, arguments.weights)
