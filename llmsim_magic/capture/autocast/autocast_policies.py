"""What CUDA autocast does to each operator, as kernels of torch's dispatcher.

The operators and policies are those of `ATen/autocast_mode.h` (`AT_FORALL_LOWER_PRECISION_FP` and
the lists after it), which torch documents as "Autocast Op Reference". They are registered under a
dispatch key whose device no build of torch supports, so they run only in threads that include the
key. The dispatcher applies them wherever an operator is called, also inside functions of torch that
are written in C++, such as `cross_entropy`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Lock, local
from typing import Any

import torch
from torch._C import DispatchKey, DispatchKeySet

from llmsim_magic.capture.kernels.tensors import tensors_in, unrecorded

DISPATCH_DEVICE = "ipu"
_KEY_NAME = "AutocastIPU"
_KEY: DispatchKey = getattr(DispatchKey, _KEY_NAME)
# The CPU's own autocast would act on tensors whose values are known on the host.
_EXCLUDED = DispatchKeySet(_KEY) | DispatchKeySet(DispatchKey.AutocastCPU)

# The names of operators by policy. Those of `float32_by_argument` take the dtype of their result,
# which is float32 unless the call names another; those of `float32_by_overload` have an overload
# that does. A promoting operator runs in the widest dtype of its arguments.
_POLICIES = {
    "lower_precision": """
        _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
        conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution
        cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear
        addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell
        lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
        scaled_dot_product_attention""",
    "float32": """
        acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
        pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm
        rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity
        poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div
        l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss
        soft_margin_loss triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits
        dist pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d
        upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d
        upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d
        upsample_bicubic2d _upsample_bicubic2d_aa""",
    "float32_by_argument": """
        prod prod.dim_int prod.dim_Dimname softmax.int softmax.Dimname log_softmax.int
        log_softmax.Dimname cumprod cumprod.dimname cumsum cumsum.dimname linalg_vector_norm
        linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList sum.dim_DimnameList""",
    "float32_by_overload": "norm.Scalar norm.ScalarOpt_dim norm.names_ScalarOpt_dim",
    "promote": """
        addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot
        scatter_add""",
    "banned": "binary_cross_entropy",
}
POLICIES = {name: policy for policy, names in _POLICIES.items() for name in names.split()}
_TYPED_NORMS = {
    "norm.Scalar": "norm.ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
    "norm.names_ScalarOpt_dim": "norm.names_ScalarOpt_dim_dtype",
}

_lock = Lock()
_thread = local()  # `casts`: the `Casts` of the innermost `applying_policies` of a thread


class Casts:
    """Casts tensors as the autocast of one thread does.

    A cast of a parameter in float32 to the lower precision is kept until `forget`, as by torch:
    of a leaf that needs a gradient and is no view.

    Attributes:
        dtype: The lower precision of the innermost region.
    """

    def __init__(self) -> None:
        self.dtype = torch.float16
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id of the parameter

    @property
    def kept(self) -> list[torch.Tensor]:
        """The casts that are kept."""
        return [cast for _, cast in self._kept.values()]

    def forget(self) -> None:
        """Drop the casts that were kept."""
        self._kept.clear()

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a value with each eligible tensor in it cast to a dtype.

        Args:
            value: A tensor, or tuples, lists and mappings of tensors and other arguments.
            dtype: The dtype to cast to; float64 and integers are not eligible.
        """
        if isinstance(value, torch.Tensor):
            is_cast = value.dtype is not dtype and _is_eligible(value)
            return self._cast(value, dtype) if is_cast else value
        kind = type(value)
        if kind is tuple or kind is list:
            return kind([self.cast(item, dtype) for item in value])
        if kind is dict:
            return {name: self.cast(item, dtype) for name, item in value.items()}
        return value

    def _cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        is_kept = (
            dtype is self.dtype
            and tensor.dtype is torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not is_kept:
            return tensor.to(dtype)
        kept = self._kept.get(id(tensor))
        if kept is None:
            kept = self._kept[id(tensor)] = tensor, tensor.to(dtype)
        return kept[1]

    def widest(self, value: Any) -> torch.dtype:
        """The dtype of an operator that promotes its arguments: float32 if one of them has it.

        Raises:
            RuntimeError: A tensor has a third floating-point dtype, which torch refuses.
        """
        found = self.dtype
        for tensor in tensors_in(value):
            if not _is_eligible(tensor):
                continue
            if torch.float32 in (found, tensor.dtype):
                found = torch.float32
            elif tensor.dtype is not found:
                raise RuntimeError(
                    "Unexpected floating ScalarType in at::autocast::prioritize: "
                    f"{tensor.dtype} under autocast to {found}"
                )
        return found


def _is_eligible(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype is not torch.float64


@contextmanager
def applying_policies(casts: Casts) -> Iterator[None]:
    """Apply the policies in this thread while autocast is enabled for `DISPATCH_DEVICE`.

    Args:
        casts: Casts the arguments, and keeps the casts of parameters.
    """
    with _lock:
        _libraries()
    outer, _thread.casts = getattr(_thread, "casts", None), casts
    # Without a guard, which would bring back the modes of the code that opened a region.
    was_included = torch._C._dispatch_tls_is_dispatch_key_included(_KEY)
    torch._C._dispatch_tls_set_dispatch_key_included(_KEY, True)
    try:
        yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, was_included)
        _thread.casts = outer
        casts.forget()


def without_policies() -> AbstractContextManager[Any]:
    """Run an operator whose arguments have been cast: autocast does not act inside it."""
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(_EXCLUDED)
    return guard


@cache
def _libraries() -> tuple[torch.library.Library, ...]:
    """Register the policies once a process; they last as long as the libraries returned.

    Operators for which the installed torch has no policy on CUDA are left out.
    """
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, _KEY_NAME)
    library = torch.library.Library("aten", "IMPL")
    for qualified in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"):
        name = qualified.removeprefix("aten::")
        if (policy := POLICIES.get(name)) is not None:
            library.impl(name, _kernel(name, policy), _KEY_NAME)
    return others, library


def _kernel(name: str, policy: str) -> Callable[..., Any]:
    """The function that applies a policy to the arguments of an operator, and runs it."""
    if policy == "banned":
        return _refuse(name)
    op = _overload(name)
    if policy == "float32_by_overload":
        return _with_dtype_overload(op, _overload(_TYPED_NORMS[name]))
    if policy == "float32_by_argument":
        return _with_dtype_argument(op)
    return _in_dtype(op, _DTYPES[policy])


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _in_dtype(op: Any, choose: Callable[[Casts, Any], torch.dtype]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        casts: Casts = _thread.casts
        with unrecorded(), without_policies():
            dtype = choose(casts, (args, kwargs))
            return op(*casts.cast(args, dtype), **casts.cast(kwargs, dtype))

    return run


_DTYPES: dict[str, Callable[[Casts, Any], torch.dtype]] = {
    "lower_precision": lambda casts, _: casts.dtype,
    "float32": lambda *_: torch.float32,
    "promote": Casts.widest,
}


def _with_dtype_argument(op: Any) -> Callable[..., Any]:
    place = [argument.name for argument in op._schema.arguments].index("dtype")

    def run(*args: Any, **kwargs: Any) -> Any:
        with unrecorded(), without_policies():
            is_given = len(args) > place or kwargs.get("dtype") is not None
            if not is_given and _is_eligible(args[0]):
                kwargs["dtype"] = torch.float32
            return op(*args, **kwargs)

    return run


def _with_dtype_overload(own: Any, op: Any) -> Callable[..., Any]:
    arguments = own._schema.arguments
    defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {each.name: value for each, value in zip(arguments, args, strict=False)}
        with unrecorded(), without_policies():
            dtype = torch.float32 if _is_eligible(args[0]) else args[0].dtype
            return op(**(defaults | given | kwargs), dtype=dtype)

    return run


def _refuse(name: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"{name} is unsafe to autocast: use {name}_with_logits on the values before the sigmoid"
        )

    return run
