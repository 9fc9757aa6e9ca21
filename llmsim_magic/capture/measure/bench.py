"""A bench for kernels: a device with weights, and kernels to time on it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.capture.measure.timers import MOST_LAUNCHES, Run
from llmsim_magic.records.hardware.torch_kernel import TorchKernel


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel to time: `runs` start it on different buffers, which are used in turn.

    `name` is the operator's, as torch's profiler shows it after `aten::`. `kernel` describes it as
    the record of a pass does. `shapes` are those of its operands, `dtype` that of the first.
    """

    name: str
    kernel: TorchKernel
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    runs: tuple[Run, ...]

    @classmethod
    def on(cls, operands: Sequence[Tensor], name: str, kernel: TorchKernel, *runs: Run) -> "Job":
        """A job whose shapes and dtype are those of its operands."""
        shapes = tuple(tuple(tensor.shape) for tensor in operands)
        return cls(name, kernel, shapes, dtype_name(operands[0].dtype), runs)


# Makes a job with its buffers, which are as large as a model's: one job has them at a time.
JobMaker = Callable[[], Job]


@dataclass(frozen=True, slots=True)
class Bench:
    """A device, the dtype of models on it, and a pool of weights."""

    device: torch.device
    dtype: torch.dtype
    pool: Tensor

    @classmethod
    def on(cls, device: torch.device, dtype: torch.dtype, pool_bytes: int) -> "Bench":
        """A bench with random weights, because the values affect power and so the clock."""
        pool = torch.empty(pool_bytes // dtype.itemsize, dtype=dtype, device=device)
        return cls(device, dtype, pool.normal_(0, 0.02))

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, dtype=dtype or self.dtype, device=self.device)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, device=self.device)

    def weights(self, *shape: int) -> tuple[Tensor, ...]:
        """Weights of a shape, to use in turn: as many as the pool holds, at least one."""
        size = math.prod(shape)
        parts = range(min(self.pool.numel() // size, MOST_LAUNCHES))
        if not parts:
            return (self.random(*shape).mul_(0.02),)
        return tuple(self.pool[n * size : (n + 1) * size].view(shape) for n in parts)


def nbytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor, which may be broadcast."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, step in steps if step) * tensor.itemsize
