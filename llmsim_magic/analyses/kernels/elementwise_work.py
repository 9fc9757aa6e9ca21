"""Elementwise operations of a kernel, which torch's FLOP counter does not count.

One small function per kind of kernel. Data movement counts zero operations. A kernel without a
formula counts as None and is reported. A name stands for all its overloads, and for the kernel that
does the same in place: `cumsum` for `cumsum_`.
"""

from collections.abc import Callable
from functools import lru_cache

from llmsim_magic.analyses.kernels import training_kernels
from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import Trace, numel

Formula = Callable[[int, int], int]


def _per_output(read: int, written: int) -> int:
    """One operation per element written."""
    return written


def _per_input(read: int, written: int) -> int:
    """One operation per element read: sums, means, maxima, scans, sorts."""
    return read


def _interpolation(read: int, written: int) -> int:
    """Bilinear: four neighbours, each multiplied and added, per element written."""
    return 8 * written


def _cubic_interpolation(read: int, written: int) -> int:
    """Bicubic: sixteen neighbours, each multiplied and added, per element written."""
    return 32 * written


def _softmax(read: int, written: int) -> int:
    """Maximum, subtraction, exponential, sum, division: five per element."""
    return 5 * written


def _normalization(read: int, written: int) -> int:
    """Mean, difference, square, mean of squares, scale, weight, bias: seven per element."""
    return 7 * written


def _fake_quantization(read: int, written: int) -> int:
    """Scale, shift and round, clamp, shift back, scale back: five per element."""
    return 5 * written


_DATA_MOVEMENT = frozenset(
    """
    _to_copy clone copy cat stack embedding index index_select gather scatter
    slice_scatter select_scatter index_put index_copy index_fill put _unsafe_index
    _index_put_impl constant_pad_nd repeat roll flip tril triu arange full full_like zeros
    zeros_like ones ones_like empty empty_like empty_strided new_empty new_zeros new_ones new_full
    fill zero scalar_tensor lift_fresh_copy unfold_copy repeat_interleave as_strided_scatter
    rand rand_like randn randn_like randint randint_like random bernoulli normal uniform
    exponential geometric log_normal cauchy
    upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d searchsorted
    eye linspace one_hot im2col pixel_shuffle reflection_pad1d reflection_pad2d replication_pad1d
    replication_pad2d _efficientzerotensor _local_scalar_dense masked_scatter masked_select nonzero
    _unique2 unique_dim unique_consecutive multinomial randperm pixel_unshuffle channel_shuffle
    col2im triu_indices tril_indices upsample_nearest3d
    allreduce allgather send recv
    """.split()  # noqa: SIM905 - a list of names reads best as words
)
_REDUCTIONS = frozenset(
    """
    sum mean amax amin max min argmax argmin prod any all var std var_mean norm linalg_vector_norm
    logsumexp cumsum cumprod cummax topk sort argsort bincount histc avg_pool2d adaptive_avg_pool2d
    _adaptive_avg_pool2d max_pool2d_with_indices avg_pool1d count_nonzero kthvalue median
    index_add index_reduce scatter_add scatter_reduce nll_loss_forward
    _is_all_true equal avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d cummin aminmax
    """.split()  # noqa: SIM905 - a list of names reads best as words
)
_SOFTMAXES = ("_softmax", "softmax", "_log_softmax", "log_softmax", "_safe_softmax")
_NORMALIZATIONS = (
    "native_layer_norm",
    "native_group_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_fused_rms_norm",
)
_BILINEAR = ("upsample_bilinear2d", "_upsample_bilinear2d_aa", "grid_sampler_2d")
_UNTAGGED_POINTWISE = (
    *("floor_divide", "polar", "complex", "masked_fill", "_prelu_kernel", "glu", "hardswish"),
    "log_sigmoid_forward",
)
_FAKE_QUANTIZATIONS = (
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)
_DEQUANTIZATIONS = ("dequantize_4bit", "dequantize_blockwise")  # a look-up, and a multiplication
_FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(_DEQUANTIZATIONS, _per_output),
    **dict.fromkeys(_FAKE_QUANTIZATIONS, _fake_quantization),
    **dict.fromkeys(_BILINEAR, _interpolation),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _cubic_interpolation),
    **dict.fromkeys(_UNTAGGED_POINTWISE, _per_output),
    **dict.fromkeys(_REDUCTIONS, _per_input),
    **dict.fromkeys(_SOFTMAXES, _softmax),
    **dict.fromkeys(_NORMALIZATIONS, _normalization),
    **training_kernels.FORMULAS,
}


@lru_cache(maxsize=4096)
def short_name(kernel: str) -> str:
    """The op name of a kernel: `mm` for `aten.mm.default`."""
    parts = kernel.split(".")
    return parts[1] if len(parts) > 1 else kernel


def functional_name(kernel: Kernel) -> str:
    """The op name of a kernel, or of the functional form if it works in place."""
    return short_name(kernel.name).removesuffix("_")


def is_data_movement(kernel: Kernel) -> bool:
    """Whether a kernel only copies, gathers or fills."""
    name = functional_name(kernel)
    return name in _DATA_MOVEMENT or name in training_kernels.DATA_MOVEMENT


def is_elementwise(kernel: Kernel) -> bool:
    """Whether a kernel computes element by element, alone or on lists of tensors."""
    name = functional_name(kernel)
    computes = kernel.pointwise and not is_data_movement(kernel)
    is_known = name in training_kernels.POINTWISE or name in _UNTAGGED_POINTWISE
    return computes or is_known or training_kernels.updates_lists(name)


def elementwise_ops(record: Record, kernel: Kernel) -> int | None:
    """Elementwise operations of a kernel; None if there is no formula for it."""
    name = functional_name(kernel)
    if kernel.is_view or kernel.flops is not None or is_data_movement(kernel):
        return 0
    if (of_lists := training_kernels.work_of_lists(record, kernel, name)) is not None:
        return of_lists
    formula = _per_output if kernel.pointwise else _FORMULAS.get(name)
    if formula is None:
        return None
    return formula(
        _largest(record, kernel.inputs), _largest(record, kernel.outputs or kernel.writes)
    )


def _largest(record: Record, tensors: tuple[int, ...]) -> int:
    return max((numel(shape) for shape in record.shapes(tensors)), default=0)


def causal_skippable_flops(record: Record, kernel: Kernel) -> int:
    """The FLOPs of causal attention that a kernel may skip: those on keys after each query.

    Query i attends to keys 1 to i, so tokens · (tokens − 1) / 2 of tokens² pairs are masked.
    """
    if not kernel.causal or not kernel.flops:
        return 0
    first = 1 if short_name(kernel.name).endswith("_backward") else 0  # after the gradient
    query, key = record.shapes(kernel.inputs)[first : first + 2]
    tokens, keys = query[-2], key[-2]
    visible = min(tokens, keys)
    masked = tokens * keys - visible * (visible + 1) // 2 - (tokens - visible) * keys
    return kernel.flops * masked // (tokens * keys)


def kernels_without_formula(trace: Trace) -> dict[str, int]:
    """Kernels without a formula for their elementwise operations, with their number of calls."""
    counts: dict[str, int] = {}
    for kernel in trace.recorded.kernels:
        if elementwise_ops(trace.recorded, kernel) is None:
            calls = 1 if kernel.operator is None else trace.run_counts[kernel.operator]
            counts[kernel.name] = counts.get(kernel.name, 0) + calls
    return counts
