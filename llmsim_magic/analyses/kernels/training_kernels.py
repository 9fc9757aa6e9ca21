"""Elementwise operations of the kernels that only training has: derivatives and optimizers.

Each formula counts what the definition of the derivative computes for one element. Kernels over
lists of tensors, `_foreach_*`, do for every tensor of the list what the plain kernel does for one.
"""

from collections.abc import Callable

from llmsim_magic.records.trace.recorded import Kernel, Record
from llmsim_magic.records.trace.trace import numel

Formula = Callable[[int, int], int]
FOREACH = "_foreach_"

DATA_MOVEMENT = frozenset(
    """
    slice_backward select_backward diagonal_backward nll_loss_backward nll_loss2d_backward
    masked_scatter_backward
    """.split()  # noqa: SIM905 - a list of names reads best as words
)
ATTENTIONS = frozenset(  # which compute the scores again from queries and keys
    """
    _scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_cudnn_attention_backward
    """.split()  # noqa: SIM905 - a list of names reads best as words
)
_MOVING_LISTS = frozenset({"copy", "zero", "clone"})
_REDUCING_LISTS = frozenset({"norm", "max", "powsum"})


def _per_output(read: int, written: int) -> int:
    """One operation per element written."""
    return written


def _per_input(read: int, written: int) -> int:
    """One operation per element of a gradient that is added to where it came from."""
    return read


def _softmax_backward(read: int, written: int) -> int:
    """Y · (g − Σ g · y), of the logarithm g − exp(y) · Σ g: four per element."""
    return 4 * written


def _normalization_backward(read: int, written: int) -> int:
    """With x̂ = (x − μ) / σ: thirteen per element.

    x̂ takes two, g · γ one, its sum one, the sum of g · γ · x̂ two, the gradient of x four, those of
    the weight and of the bias three.
    """
    return 13 * read


def _rms_normalization_backward(read: int, written: int) -> int:
    """As `_normalization_backward`, without mean and bias: nine per element."""
    return 9 * read


def _bilinear_backward(read: int, written: int) -> int:
    """Four neighbours, each multiplied and added, per element of the gradient."""
    return 8 * read


def _cubic_backward(read: int, written: int) -> int:
    """Sixteen neighbours, each multiplied and added, per element of the gradient."""
    return 32 * read


def _alignments(read: int, written: int) -> int:
    """Three sums of exponentials for each step and label, forward and backward: six per score."""
    return 6 * max(read, written)


# Torch tags few derivatives as pointwise, though each element of them depends on its own alone.
POINTWISE = frozenset(
    """
    native_dropout _fused_dropout _prelu_kernel_backward binary_cross_entropy_backward elu_backward
    glu_backward hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward
    huber_loss_backward leaky_relu_backward log_sigmoid_backward mish_backward mse_loss_backward
    rrelu_with_noise_backward smooth_l1_loss_backward soft_margin_loss_backward softplus_backward
    softshrink_backward
    """.split()  # noqa: SIM905 - a list of names reads best as words
)
_LOSSES = """
huber_loss mse_loss smooth_l1_loss soft_margin_loss multi_margin_loss multi_margin_loss_backward
multilabel_margin_loss_forward multilabel_margin_loss_backward nll_loss2d_forward
binary_cross_entropy binary_cross_entropy_with_logits
"""
_SUMS_OF_GRADIENTS = """
embedding_dense_backward _embedding_bag_dense_backward _adaptive_avg_pool2d_backward
_adaptive_avg_pool3d_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward
avg_pool2d_backward avg_pool3d_backward max_pool2d_with_indices_backward
max_pool3d_with_indices_backward reflection_pad1d_backward reflection_pad2d_backward
reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward
replication_pad3d_backward unfold_backward upsample_nearest1d_backward upsample_nearest2d_backward
upsample_nearest3d_backward _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward
_upsample_nearest_exact3d_backward
"""
_NORMALIZATIONS = (
    "native_layer_norm_backward",
    "native_group_norm_backward",
    "native_batch_norm_backward",
    "batch_norm_backward",
    "cudnn_batch_norm_backward",
)
FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(POINTWISE, _per_output),
    **dict.fromkeys(_LOSSES.split(), _per_input),
    **dict.fromkeys(_SUMS_OF_GRADIENTS.split(), _per_input),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), _softmax_backward),
    **dict.fromkeys(_NORMALIZATIONS, _normalization_backward),
    "_fused_rms_norm_backward": _rms_normalization_backward,
    "_weight_norm_interface_backward": _rms_normalization_backward,
    **dict.fromkeys(
        ("upsample_bilinear2d_backward", "grid_sampler_2d_backward"), _bilinear_backward
    ),
    "_upsample_bilinear2d_aa_backward": _bilinear_backward,
    "upsample_linear1d_backward": _bilinear_backward,
    "upsample_bicubic2d_backward": _cubic_backward,
    "_upsample_bicubic2d_aa_backward": _cubic_backward,
    **dict.fromkeys(("_ctc_loss", "_ctc_loss_backward"), _alignments),
}

# Of an update in one kernel, for each parameter: those of AdamW are decay one, first moment three,
# second four, corrections two, root, epsilon, quotient and step two; Lion has fewer.
_UPDATE = 15
_UPDATES = ("optimizer_update_32bit", "optimizer_update_8bit_blockwise")
FUSED = ("_fused_adam", "_fused_adamw")  # which write parameters and two moments
_FUSED_WRITES = 3


def work_of_lists(record: Record, kernel: Kernel, name: str) -> int | None:
    """Operations of a kernel over lists of tensors, or of an optimizer's update; None for others.

    Args:
        record: The step.
        kernel: The kernel.
        name: Its functional name, such as `_foreach_mul`.
    """
    if name in _UPDATES:
        return _UPDATE * _elements(record, kernel.inputs[:1])
    if name in FUSED:
        return _UPDATE * _elements(record, kernel.inputs[: list_length(kernel, name)])
    if not name.startswith(FOREACH):
        return None
    kind = name.removeprefix(FOREACH)
    if kind in _MOVING_LISTS:
        return 0
    if kind in _REDUCING_LISTS:
        return _elements(record, kernel.inputs)
    return _elements(record, kernel.writes or kernel.outputs)


def list_length(kernel: Kernel, name: str) -> int:
    """How many tensors each list has that a kernel works on; 0 for one that works on none.

    Args:
        kernel: The kernel.
        name: Its functional name.
    """
    if name in FUSED:
        return len(kernel.writes) // _FUSED_WRITES
    return len(kernel.writes or kernel.outputs) if name.startswith(FOREACH) else 0


def _elements(record: Record, tensors: tuple[int, ...]) -> int:
    return sum(map(numel, record.shapes(tensors)))


def updates_lists(name: str) -> bool:
    """Whether a kernel, by its functional name, computes on lists of tensors."""
    return name.startswith(FOREACH) and name.removeprefix(FOREACH) not in _MOVING_LISTS
