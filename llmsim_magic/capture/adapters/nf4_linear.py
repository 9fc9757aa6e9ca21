"""A linear layer whose weight is kept in four bits, as bitsandbytes keeps and multiplies it.

`bitsandbytes.nn.Linear4bit` quantises only what is on a device, so that this module has its
tensors and its kernels on `meta`: NF4 with double quantisation (Dettmers et al., 2023).
"""

from math import ceil
from typing import Any

import torch
from torch import nn

from llmsim_magic.capture.record.hooks import PACKED

META = torch.device("meta")
BLOCK = 64  # weights that share a largest absolute value
NESTED_BLOCK = 256  # such values, in 8 bits, that share one of their own

# The kernels have the signatures that they have in the namespace `bitsandbytes`, which is not used:
# bitsandbytes could not be imported after this.
_KERNELS = torch.library.Library("bnb", "DEF")
_KERNELS.define(
    "dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int blocksize, ScalarType dtype) "
    "-> Tensor"
)
_KERNELS.define(
    "dequantize_4bit(Tensor A, Tensor absmax, int blocksize, str quant_type, int[] shape, "
    "ScalarType dtype) -> Tensor"
)


@torch.library.impl(_KERNELS, "dequantize_blockwise", "Meta")
def _dequantize_blockwise(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty_like(codes, dtype=dtype)


@torch.library.impl(_KERNELS, "dequantize_4bit", "Meta")
def _dequantize_4bit(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    shape: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=packed.device)


class Linear4bit(nn.Linear):
    """A linear layer `[..., in] → [..., out]` with its weight in NF4.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Its bias, or None.
        dtype: The dtype that the weight had, in which backward dequantises it.
        compute_dtype: The dtype of its matmuls.

    Attributes:
        weight: Two weights a byte, `[ceil(out · in / 2), 1]`.
        absmax: The largest absolute value of each block of 64 weights, in 8 bits.
        quant_map: The 16 values of NF4.
        nested_absmax: Its own of each block of 256 of those, in float32.
        nested_quant_map: The 256 values of an 8-bit `absmax`.
        nested_offset: The mean of all largest values, which is subtracted before they are
            quantised.
    """

    absmax: torch.Tensor
    quant_map: torch.Tensor
    nested_absmax: torch.Tensor
    nested_quant_map: torch.Tensor
    nested_offset: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.weight_dtype, self.compute_dtype = dtype, compute_dtype
        count = in_features * out_features
        blocks = ceil(count / BLOCK)
        packed = torch.empty(ceil(count / 2), 1, dtype=torch.uint8, device=META)
        self.weight = nn.Parameter(packed, requires_grad=False)
        setattr(self.weight, PACKED, 2)
        self.register_parameter("bias", bias)
        self._keep("absmax", torch.empty(blocks, dtype=torch.uint8, device=META))
        self._keep("quant_map", _floats(16))
        self._keep("nested_absmax", _floats(ceil(blocks / NESTED_BLOCK)))
        self._keep("nested_quant_map", _floats(256))
        self._keep("nested_offset", _floats())

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Multiply in the compute dtype; the output has the input's dtype."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        output: torch.Tensor = _MatMul4Bit.apply(input.to(self.compute_dtype), bias, self)
        return output.to(input.dtype)

    def scales(self) -> torch.Tensor:
        """The largest absolute values, without their offset, in float32."""
        scales: torch.Tensor = torch.ops.bnb.dequantize_blockwise(
            self.absmax, self.nested_absmax, self.nested_quant_map, NESTED_BLOCK, torch.float32
        )
        return scales

    def dequantized(self, absmax: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight `[out, in]`, as a new tensor."""
        shape = [self.out_features, self.in_features]
        weight: torch.Tensor = torch.ops.bnb.dequantize_4bit(
            self.weight, absmax, BLOCK, "nf4", shape, dtype
        )
        return weight


def _floats(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=META)


class _MatMul4Bit(torch.autograd.Function):
    """`bitsandbytes.autograd.MatMul4Bit`: keeps neither the input nor the dequantised weight.

    It dequantises whatever the number of tokens. bitsandbytes has a fused kernel for few of them,
    on an H100 for at most 64 of a large weight.
    """

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, bias: torch.Tensor | None, layer: Linear4bit
    ) -> torch.Tensor:
        ctx.layer = layer
        scales = layer.scales()  # kept until the matmul is done, as by bitsandbytes
        absmax = scales + layer.nested_offset
        return nn.functional.linear(input, layer.dequantized(absmax, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        layer = ctx.layer
        absmax = layer.scales()
        absmax += layer.nested_offset
        weight = layer.dequantized(absmax, layer.weight_dtype)
        del absmax
        return torch.matmul(gradient, weight.to(gradient.dtype)), None, None
