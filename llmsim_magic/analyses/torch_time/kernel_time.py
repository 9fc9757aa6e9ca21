"""Predicted time of one of PyTorch's kernels on a device.

    seconds = start + max(work, memory)

`work` is that of the arithmetic units: elements, or the tiles of a product in whole waves. `memory`
is that of the least bytes, from the last-level cache as far as it holds them.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.analyses.time.roofline_terms import cache_hit_share, memory_bandwidth
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.dtypes import BITS, arithmetic
from llmsim_magic.records.hardware.torch_kernel import TorchConstants, TorchKernel, TorchKind

# Tiles of a product's rows × columns, one for each unit at a time. The narrow ones are for a few
# rows or columns: the instructions of tensor cores take 8 or 16.
_WIDE_TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64))
_NARROW_TILES = tuple((wide, narrow) for wide in (128, 64) for narrow in (32, 16))
_TILES = (*_WIDE_TILES, *_NARROW_TILES, *(tile[::-1] for tile in _NARROW_TILES))
_SHARPNESS = 4  # how well work and memory traffic overlap: the sum of fourth powers
_CACHE_STEEPNESS = 4
_ALIGNMENT = 16  # bytes of the rows that tensor cores load and store at once
_LENGTH = 1024  # keys, at which the share of attention is stated
# FLOP/s of attention's derivative against those of attention: FlashAttention-2 (arXiv 2307.08691)
# reports up to 63 % of an A100's peak against 73 %, FlashAttention-3 (arXiv 2407.08608) on an H100
# up to 1.75 times as much as FlashAttention-2 against 2 times.
_BACKWARD_SHARE = 0.8
_PRICED_AS: dict[TorchKind, TorchKind] = {"attention backward": "attention"}


@dataclass(frozen=True)
class KernelTime:
    """Seconds of a kernel, without the gap before it: its start, and the work that bounds it."""

    start_s: float
    work_s: float
    memory_s: float

    @cached_property
    def seconds(self) -> float:
        bound: float = (self.work_s**_SHARPNESS + self.memory_s**_SHARPNESS) ** (1 / _SHARPNESS)
        return self.start_s + bound

    @property
    def binds(self) -> Binds:
        if self.start_s > max(self.work_s, self.memory_s):
            return "launch"
        return "compute" if self.work_s > self.memory_s else "memory"


def kernel_time(
    kernel: TorchKernel, accelerator: Accelerator, constants: TorchConstants
) -> KernelTime:
    """The time of one kernel.

    Raises:
        CannotPredict: If the catalogue lacks a figure of the device.
        InvalidValue: If the device cannot compute in the kernel's dtype.
    """
    kind = constants.kinds[_PRICED_AS.get(kernel.kind, kernel.kind)]
    start_s = kind.start_s * kernel.launches
    if kernel.kind in ("matmul", "grouped matmul"):
        work_s = _product_s(kernel, accelerator, constants)
        bandwidth = memory_bandwidth(accelerator) * constants.matmul_memory_share
        return KernelTime(start_s, work_s, kernel.bytes / bandwidth)
    memory_s = _memory_s(kernel, accelerator, constants)
    if kernel.kind in ("attention", "attention masked", "attention backward"):
        return KernelTime(start_s, _attention_s(kernel, accelerator, constants), memory_s)
    elements = kernel.elements
    if kernel.kind == "attention decode":
        # Each query head reads its keys for itself, in tiles with one row of queries.
        elements = kernel.products * kernel.shape[1]
    work_s = elements * kind.element_flops / accelerator.peak("fp32")
    return KernelTime(start_s, work_s, memory_s)


def _attention_s(kernel: TorchKernel, accelerator: Accelerator, constants: TorchConstants) -> float:
    is_masked = kernel.kind == "attention masked"
    share = constants.masked_share if is_masked else constants.attention_share
    if kernel.kind == "attention backward":
        share *= _BACKWARD_SHARE
    share *= math.pow(kernel.shape[1] / _LENGTH, constants.attention_length)
    return kernel.flops / (share * accelerator.peak(kernel.dtype))


def _product_s(kernel: TorchKernel, accelerator: Accelerator, constants: TorchConstants) -> float:
    """Seconds of a product's tiles, in whole waves over the device's units."""
    peak = accelerator.peak(kernel.dtype)
    if kernel.kind == "grouped matmul":
        return kernel.flops / (constants.grouped_share * peak)
    if min(kernel.shape[:2]) == 1:  # a matrix by a vector: no tiles, and no tensor cores
        return kernel.flops / accelerator.peak("fp32")
    peak *= constants.matmul_share
    peak *= _alignment_share(kernel, accelerator, constants)
    units = accelerator.compute_units
    if units is None:
        return kernel.flops / peak
    rows, columns, length = kernel.shape

    def seconds(tile_rows: int, tile_columns: int) -> float:
        tiles = kernel.products * math.ceil(rows / tile_rows) * math.ceil(columns / tile_columns)
        whole = math.ceil(tiles / units) * units
        overhead = 1 + constants.tile_overhead * (1 / tile_rows + 1 / tile_columns)
        return 2.0 * whole * tile_rows * tile_columns * length * overhead / peak

    return min(seconds(*tile) for tile in _TILES)


def _alignment_share(
    kernel: TorchKernel, accelerator: Accelerator, constants: TorchConstants
) -> float:
    """The share of their rate that tensor cores reach by the alignment of rows.

    They load and store 16 bytes at once; each halving costs the same factor, down to the 2 bytes
    for which it was fitted. PyTorch uses none for fp32 by default, and no product is slower than
    in fp32, whose rows are twice as long. Devices that are not GPUs were not measured.
    """
    cycles = accelerator.unit_cycles_per_s
    if kernel.dtype == "fp32" or kernel.shape[2] == 1 or cycles is None:
        return 1.0
    peak = accelerator.peak(kernel.dtype)
    written = kernel.shape[1] * BITS[arithmetic(kernel.dtype)] // 8
    alignment = math.gcd(_ALIGNMENT, kernel.alignment, int(written))
    least = min(1.0, constants.misaligned_flops * cycles / peak)
    share = math.pow(least, math.log(_ALIGNMENT / alignment, 8))
    return max(share, min(1.0, accelerator.peak_flops.get("fp32", 0.0) / peak))


def _memory_s(kernel: TorchKernel, accelerator: Accelerator, constants: TorchConstants) -> float:
    bandwidth = memory_bandwidth(accelerator)
    cache = constants.cache_share * (accelerator.llc_bytes or 0)
    held = cache_hit_share(kernel.bytes // kernel.launches, cache, _CACHE_STEEPNESS)
    near = held / constants.cache_speed
    return kernel.bytes * (near + (1 - held) / constants.memory_share) / bandwidth
