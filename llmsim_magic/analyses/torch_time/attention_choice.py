"""Which implementation of `scaled_dot_product_attention` PyTorch selects on a device.

As `sdp_utils.cpp` of torch 2.9 and later: the first of cuDNN, flash, efficient and math whose
conditions hold; cuDNN comes first on the devices that it was tuned for, and last on all others.
"""

from typing import Literal

from llmsim_magic.records.trace.recorded import Tensor

Implementation = Literal["cudnn", "flash", "efficient", "math"]

_HALF = ("bfloat16", "float16")
_CUDNN_WIDTH = {"hopper": 256, "blackwell": 128}  # datacenter devices alone
_BEFORE_FLASH = ("volta", "turing", "pascal", "maxwell", "kepler")
_FLASH_WIDTH = 256


def attention_implementation(
    query: Tensor, key: Tensor, value: Tensor, architecture: str, *, has_mask: bool
) -> Implementation:
    """The implementation that PyTorch selects.

    Args:
        query: `[..., heads, queries, width]`.
        key: `[..., heads or fewer, keys, width]`.
        value: `[..., heads or fewer, keys, value width]`.
        architecture: That of the device.
        has_mask: Whether a mask of each query and key is read.
    """
    is_half = query.dtype in _HALF
    widths = (query.shape[-1], value.shape[-1])
    if is_half and _has_cudnn(architecture, widths):
        return "cudnn"
    is_flash_device = architecture not in _BEFORE_FLASH
    has_equal_widths = widths[0] == widths[1] <= _FLASH_WIDTH
    if is_half and is_flash_device and has_equal_widths and not has_mask:
        return "flash"
    is_grouped = query.shape[-3:-2] != key.shape[-3:-2]
    alignment = 16 // query.itemsize
    if not is_grouped and all(width % alignment == 0 for width in widths):
        return "efficient"
    return "math"


def _has_cudnn(architecture: str, widths: tuple[int, int]) -> bool:
    widest = _CUDNN_WIDTH.get(architecture, 0)
    return all(width % 8 == 0 and width <= widest for width in widths)
