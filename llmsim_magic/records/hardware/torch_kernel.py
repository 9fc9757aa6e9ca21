"""Kernels as PyTorch runs them one by one, and the constants that price them on a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmsim_magic.records.hardware.calibration import Band

TorchKind = Literal[
    "pointwise",  # every operand is contiguous and has the shape of the result: vector loads
    "cast",  # the same, but from one dtype to another
    "strided",  # a broadcast or transposed operand: an offset is computed for each element
    "joined",  # cat of strided parts
    "gathered",  # index, embedding, scatter
    "reduction",
    "sort",
    "topk",
    "matmul",
    "grouped matmul",
    "attention",  # many queries, each of which sees every key, or the keys before it
    "attention masked",  # many queries, and a mask that is read
    "attention decode",  # one query of each sequence
    "attention backward",  # its derivative: five products instead of two
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchKernel:
    """One kernel by what decides how long it takes, or several in a row that share its work.

    Attributes:
        kind: the class that it is priced by.
        bytes: the least traffic, each operand once.
        elements: those worked on: written, or read if more are read.
        flops: of matmuls and attention; a multiply-add is two.
        dtype: the arithmetic of the FLOPs.
        shape: rows, columns and length of the sums of one product; for attention the queries,
            the keys, and the width of a key.
        products: how many of that shape; for attention pairs of a sequence and a query head.
        implementation: of attention: `cudnn`, `flash`, `efficient` or `math`.
        alignment: bytes of which the rows of both factors of a product start at multiples: 1, 2, 4,
            8, or 16 and more.
        launches: how many kernels share the work, as those over lists of tensors do.
    """

    kind: TorchKind
    bytes: int
    elements: int
    flops: int = 0
    dtype: str = "bf16"
    shape: tuple[int, int, int] = (0, 0, 0)
    products: int = 1
    implementation: str | None = None
    alignment: int = 16
    launches: int = 1


@dataclass(frozen=True, slots=True)
class TorchSample:
    """One measured kernel, replayed in a graph."""

    kernel: TorchKernel
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConstants:
    """How a device runs one kind of kernels.

    `start_s` is the time of the smallest one. An element takes as long as `element_flops` FLOPs
    at the device's fp32 peak.
    """

    start_s: float
    element_flops: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchConstants:
    """How a device runs PyTorch's kernels; shares are of the datasheet's figures.

    Attributes:
        kinds: constants by kind of kernel.
        memory_share: of the memory's bandwidth.
        cache_speed: of the last-level cache, as a multiple of the memory's bandwidth.
        cache_share: of the last-level cache that holds what the kernel before has written.
        matmul_memory_share: of the bandwidth, for weights.
        matmul_share: of the peak, in whole waves of tiles.
        tile_overhead: rows and columns that the fixed work of a tile is worth.
        misaligned_flops: of a compute unit in a cycle, of which products reach the matmul's share
            where rows of a factor or of the result start at multiples of 2 bytes, and not of 16.
            Loads bound those, which are as many a cycle whatever the rate of tensor cores is.
        grouped_share: of the peak, for the products of a mixture's experts.
        attention_share: of the peak, at 1,024 keys.
        attention_length: exponent of that share in the number of keys.
        masked_share: as `attention_share`, with a mask that is read.
        hot_share: of the time of arithmetic that is lost to the limit of power, if a pass has
            nothing else.
        gap_s: between two kernels of a CUDA graph.
        host_kernel_s: host time to start a kernel, outside of a CUDA graph.
        host_gather_s: host time on top of that for a sort, a lookup or a grouped product, which
            launch several kernels of their own.
        host_view_s: host time to make a view.
        host_call_s: host time of a call of a module or function that the model makes.
    """

    kinds: Mapping[str, KernelConstants] = field(hash=False)
    memory_share: float
    cache_speed: float
    cache_share: float
    matmul_memory_share: float
    matmul_share: float
    tile_overhead: float
    misaligned_flops: float
    grouped_share: float
    attention_share: float
    attention_length: float
    masked_share: float
    hot_share: float
    gap_s: float
    host_kernel_s: float
    host_gather_s: float
    host_view_s: float
    host_call_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConstants:
    """What the host takes to start the kernels of a training step; views are as in inference.

    Attributes:
        host_module_s: of a call of a module.
        host_op_s: of an ATen op that Python calls, in a forward or an optimizer.
        host_backward_s: of an ATen op that autograd calls.
        host_tensor_s: of each tensor of an op over lists of tensors, as optimizers call them.
        checkpoint_share: how much longer the forward of a checkpointed layer takes, each time it
            runs: hooks in Python see every tensor that autograd would keep.
    """

    host_module_s: float
    host_op_s: float
    host_backward_s: float
    host_tensor_s: float
    checkpoint_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCalibration:
    """Constants fitted on one device, and the bands that leaving a model out earned.

    Attributes:
        device: the name of the device in the catalogue of accelerators.
        constants: what was fitted.
        kernels: the band of a single kernel.
        passes: the band of a pass, by launch.
        training: what training takes beyond the constants of a forward.
        steps: the band of a training step that the host starts kernel by kernel.
        carried: the band of a pass on other devices of the vendor, by launch, where published runs
            earned one.
        samples: how many kernels and passes were fitted to.
        models: the models whose runs those are.
        sources: where they come from, with versions.
    """

    device: str
    constants: TorchConstants
    kernels: Band
    passes: Mapping[str, Band] = field(hash=False)
    training: TrainingConstants
    steps: Band
    samples: int
    models: tuple[str, ...]
    sources: tuple[str, ...]
    carried: Mapping[str, Band] = field(default_factory=dict, hash=False)
