"""Name the modules for which torch has fused kernels of inference that a trace does not show."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.nn import MultiheadAttention, TransformerEncoder, TransformerEncoderLayer

from llmsim_magic.capture.record.events import ModuleCall
from llmsim_magic.records.trace.recorded import Tensor

_FUSED = (TransformerEncoder, TransformerEncoderLayer, MultiheadAttention)


def inference_kernel_notes(calls: Iterable[ModuleCall], tensors: Sequence[Tensor]) -> Iterator[str]:
    """Yield a note if torch runs modules of a pass by other kernels where gradients are off.

    Such kernels skip the padding of each sample, whose lengths are values. A trace shows those
    that run where gradients are on.

    Args:
        calls: The module calls of the pass.
        tensors: The tensors of the pass, by number.
    """
    called = list(calls)
    if torch.backends.mha.get_fastpath_enabled() and any(
        _is_fused_in_inference(call, tensors) for call in called
    ):
        kinds = [
            kind.__name__
            for kind in _FUSED
            if any(isinstance(call.module, kind) for call in called)
        ]
        yield (
            f"{', '.join(kinds)}: the kernels are those that torch runs where gradients are on; "
            "without gradients it has a fused path that skips padding, unless "
            "torch.backends.mha.set_fastpath_enabled(False) was called"
        )


def _is_fused_in_inference(call: ModuleCall, tensors: Sequence[Tensor]) -> bool:
    """Whether a call is self-attention that meets the conditions of torch's fused path.

    They are listed in the documentation of `torch.nn.MultiheadAttention`; an encoder layer takes
    its own fused path only if its attention meets them too.
    """
    module = call.module
    return (
        isinstance(module, MultiheadAttention)
        and type(module).forward is MultiheadAttention.forward
        and module.batch_first
        and module.num_heads % 2 == 0
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
        and len(set(call.inputs[:3])) == 1  # query, key and value
        and len(tensors[call.inputs[0]].shape) == 3
    )
