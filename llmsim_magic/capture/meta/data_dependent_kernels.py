"""Handlers for kernels that `meta` cannot run, because their result depends on unknown values.

`HANDLERS` maps each kernel to a function that takes the evaluation and the kernel's arguments. It
returns a result, or `NotImplemented` where the kernel can run on `meta` after all.
"""

from collections.abc import Callable
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import dtype_name, tensors_in
from llmsim_magic.capture.meta import data_dependent_choices as choices
from llmsim_magic.capture.meta import data_dependent_shapes as shapes
from llmsim_magic.capture.meta import recurrent_layers
from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation

aten = torch.ops.aten
META = torch.device("meta")


def assumed_scalar(evaluation: PartialEvaluation, tensor: torch.Tensor) -> bool | int | float:
    """Return the assumed value of an unknown tensor that Python code reads, as by `item`.

    Args:
        evaluation: The evaluation that records the assumption.
        tensor: A tensor whose values are not known.

    Returns:
        True for a validity check, False for any other condition, 1 for a number.
    """
    value: bool | float = 1.0 if tensor.is_floating_point() else 1
    if tensor.dtype is torch.bool:
        value = evaluation.is_check(tensor)
        if not value:
            evaluation.assume_false(tensor)
    evaluation.assume(
        f"a value that the model's code reads and that depends on the data is assumed to be {value}"
    )
    return value


def _to_copy(
    evaluation: PartialEvaluation,
    data: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """A conversion of floating-point data to integers, such as predicted durations: all 1."""
    is_integer = dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
    if (
        not data.is_floating_point()
        or not is_integer
        or dtype is torch.bool
        or not evaluation.is_holdable(data.numel())
    ):
        return NotImplemented
    evaluation.assume("an integer that depends on the data is assumed to be 1")
    return torch.ones(data.shape, dtype=dtype)


def _grouped_matmul(
    evaluation: PartialEvaluation,
    rows: torch.Tensor,
    weights: torch.Tensor,
    offs: torch.Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> torch.Tensor:
    """The experts' grouped matmul; its meta kernel accepts bfloat16 only, unlike real devices.

    With the ends `offs` of the groups, `[M, K] × [groups, K, N]` groups the rows, and the gradients
    of its weights `[M, K] × [K, N]` the inner dimension: the result is `[groups, M, N]`.
    """
    shape: tuple[int, ...] = (*rows.shape[:-1], weights.shape[-1])
    if weights.dim() == 2:
        is_outer = rows.dim() == 2
        shape = (*offs.shape, *shape) if is_outer and offs is not None else shape[-2:]
    return rows.new_empty(shape, device=META)


def _matmul(evaluation: PartialEvaluation, *operands: torch.Tensor, **options: Any) -> Any:
    """A matmul; its meta kernel accepts float64 mixed with other dtypes, unlike real devices."""
    dtypes = {tensor.dtype for tensor in tensors_in(operands)}
    if len(dtypes) > 1 and torch.float64 in dtypes:
        raise RuntimeError(f"a matmul of {' and '.join(sorted(map(dtype_name, dtypes)))}")
    return NotImplemented


def _all(
    evaluation: PartialEvaluation, values: torch.Tensor, *rest: Any, **options: Any
) -> torch.Tensor:
    """`all` of unknown values: a validity check, as of a padding mask, which is assumed to pass.

    It does not where `any` of the same values was assumed to be False before.
    """
    condition = _reduced(values)
    return condition if evaluation.has_none_true(values) else evaluation.mark_check(condition)


def _any(evaluation: PartialEvaluation, values: torch.Tensor) -> torch.Tensor:
    """`any` of unknown values, which a later `all` of them has to agree with."""
    return evaluation.mark_any(_reduced(values), values)


def _reduced(values: torch.Tensor) -> torch.Tensor:
    data = torch.empty(values.shape, dtype=values.dtype, device=META)
    return aten.any.default(data)


def _equal(
    evaluation: PartialEvaluation, one: torch.Tensor, other: torch.Tensor, *rest: Any
) -> bool:
    """`torch.equal` or `allclose` of unknown values."""
    evaluation.assume(
        "a value that the model's code reads and that depends on the data is assumed to be False"
    )
    return False


def _is_left_aligned(evaluation: PartialEvaluation, *arguments: Any, **options: Any) -> bool:
    """Whether a nested tensor may cut off padding: never, as where gradients are on.

    `nn.TransformerEncoder` checks this for its fast path of inference. Without that path it runs
    its layers over the padding.
    """
    return False


def _fake_quantize(
    evaluation: PartialEvaluation, values: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that are rounded as if they were quantised, and which of them are in range."""
    return (
        torch.empty_like(values, device=META),
        torch.empty_like(values, dtype=torch.bool, device=META),
    )


def _ctc_loss(
    evaluation: PartialEvaluation,
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *rest: Any,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss `[samples]`, and log alpha `[samples, steps, 2 · longest target + 1]`.

    The longest target is the largest of the lengths, or the width of `targets` if they are unknown.
    """
    steps, samples = log_probs.shape[:2]
    longest = targets.shape[-1]
    if evaluation.is_known(target_lengths):
        longest = int(target_lengths.max())
    shape = (samples, steps, 2 * longest + 1)
    return log_probs.new_empty(samples, device=META), log_probs.new_empty(shape, device=META)


def _gradient(
    evaluation: PartialEvaluation, gradient: torch.Tensor, values: torch.Tensor, *rest: Any
) -> torch.Tensor:
    """The derivative by the second argument of a kernel that has no meta kernel."""
    return torch.empty_like(values, device=META)


def _gradients_of_quantization(
    evaluation: PartialEvaluation, gradient: torch.Tensor, *values: Any
) -> tuple[torch.Tensor, ...]:
    """The derivatives by values, scales and zero points."""
    return tuple(torch.empty_like(each, device=META) for each in values[:3])


HANDLERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: assumed_scalar,
    aten._to_copy.default: _to_copy,
    aten._grouped_mm.default: _grouped_matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _matmul,
    aten.topk.default: choices.topk,
    aten.argmax.default: choices.argmax,
    aten.argmin.default: choices.argmax,
    aten.max.dim: choices.max_along,
    aten.min.dim: choices.max_along,
    aten.sort.default: choices.sort,
    aten.sort.stable: choices.sort_stable,
    aten.multinomial.default: choices.multinomial,
    aten.nonzero.default: shapes.nonzero,
    aten.masked_select.default: shapes.masked_select,
    aten.index.Tensor: shapes.index,
    aten.index_put.default: shapes.index_put,
    aten.index_put_.default: shapes.index_put_in_place,
    aten._unique2.default: shapes.unique,
    aten.unique_consecutive.default: shapes.unique,
    aten.unique_dim.default: shapes.unique_along,
    aten.bincount.default: shapes.bincount,
    aten.histc.default: shapes.histogram,
    aten.histogram.bin_ct: shapes.histogram_with_edges,
    aten.histogram.bins_tensor: shapes.histogram_with_edges,
    aten.linalg_lstsq.default: shapes.least_squares,
    aten.repeat_interleave.Tensor: shapes.repeat_interleave,
    aten._pack_padded_sequence.default: shapes.pack_padded_sequence,
    aten._nested_tensor_from_mask_left_aligned.default: _is_left_aligned,
    aten.fake_quantize_per_tensor_affine_cachemask.default: _fake_quantize,
    aten.fake_quantize_per_channel_affine_cachemask.default: _fake_quantize,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default: _fake_quantize,
    aten._ctc_loss.Tensor: _ctc_loss,
    aten._ctc_loss_backward.Tensor: _gradient,
    aten._ctc_loss_backward.default: _gradient,
    aten._masked_softmax_backward.default: _gradient,
    aten.fractional_max_pool3d_backward.default: _gradient,
    aten.multi_margin_loss_backward.default: _gradient,
    aten.multilabel_margin_loss_backward.default: _gradient,
    aten._fake_quantize_learnable_per_tensor_affine_backward.default: _gradients_of_quantization,
    aten._fake_quantize_learnable_per_channel_affine_backward.default: _gradients_of_quantization,
    aten._cudnn_rnn.default: recurrent_layers.recurrent_kernel_outputs,
    aten._cudnn_rnn_backward.default: recurrent_layers.recurrent_derivative,
    aten.equal.default: _equal,
    aten.allclose.default: _equal,
    aten.all.default: _all,
    aten.any.default: _any,
    aten._is_all_true.default: _all,
}
