"""Measure this machine's GPU in less than two minutes: peak rates, kernels and passes.

Each kernel is repeated in a CUDA graph, so that the host does not delay it. Its activations stay
in the last-level cache as far as they fit, as if the previous kernel had just written them; its
weights do not, as those of a model do not. Kernels are timed in random order, so that whatever else
slows the device down for a while does so to every kind.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from llmsim_magic.capture.measure.bench import Bench, Job, JobMaker
from llmsim_magic.capture.measure.cuda_device import (
    cuda_accelerator,
    first_line,
    require_memory,
)
from llmsim_magic.capture.measure.grid import FULL, Grid, job_makers
from llmsim_magic.capture.measure.model_passes import ModelPass, model_passes
from llmsim_magic.capture.measure.timers import Timings, kernel_gap, kernel_timings, timings
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotMeasure
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchSample
from llmsim_magic.records.trace.workload import IsCancelled

_BUDGET_S = 90.0
_MOST_SPREAD = 1.5  # of the times of a kernel, slowest by quickest, on a device of its own
_COPY_BYTES = 2**30
_FP32_SIZE = 4096  # rows, columns and length of a product
_LEAST_S = 1e-7  # of a kernel, whatever the gap is said to be


@dataclass(frozen=True, slots=True)
class GpuMeasurement:
    """This machine's GPU, and the times of kernels and of passes on it.

    Attributes:
        accelerator: the device by the name that its driver gives it.
        samples: kernels, without the gap between two kernels of a graph.
        passes: of small models, which show what the host takes to start kernels.
        gap_s: between two kernels of a graph; 0 if it is in the samples.
        left_out: why kernels are missing that this version of torch cannot run on the device.
    """

    accelerator: Accelerator
    samples: tuple[TorchSample, ...]
    passes: tuple[ModelPass, ...]
    gap_s: float
    left_out: tuple[str, ...]


@isolated()
def measure(device: torch.device | None = None, grid: Grid = FULL) -> GpuMeasurement:
    """Measure a GPU.

    Args:
        device: A CUDA device, which nothing else should use meanwhile; torch's current one if None.
        grid: The sizes of kernels.

    Raises:
        CannotMeasure: The device has too little free memory, another program uses it, or it fails.
        KeyboardInterrupt: The measurement was cancelled.
    """
    device = device or torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    try:
        with DeferredInterrupt() as stopped, torch.inference_mode():
            require_memory(device, grid.needed_bytes)
            with torch.cuda.device(device):
                return _measure(device, grid, stopped)
    except torch.OutOfMemoryError as error:
        why = "it is busy: another program took its memory meanwhile"
        raise CannotMeasure(name, why) from error
    except RuntimeError as error:
        raise CannotMeasure(name, first_line(error)) from error
    finally:
        torch.cuda.empty_cache()


def _measure(device: torch.device, grid: Grid, stopped: IsCancelled) -> GpuMeasurement:
    properties = torch.cuda.get_device_properties(device)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16
    bandwidth = copy_bandwidth(device, _COPY_BYTES)
    gap_s = kernel_gap(device)
    bench = Bench.on(device, dtype, grid.pool_bytes)
    timed, left_out = kernel_times(job_makers(bench, grid), device, stopped)
    del bench
    if not timed:
        raise CannotMeasure(properties.name, f"no kernel runs on it: {left_out[0]}")
    require_steady(properties.name, [found for _, found in timed])
    peaks = peak_rates(timed) | {"fp32": matmul_rate(device, torch.float32, _FP32_SIZE)}
    return GpuMeasurement(
        accelerator=cuda_accelerator(properties, bandwidth, peaks, torch.__version__),
        samples=samples(timed, gap_s),
        passes=tuple(model_passes(grid.models, grid.workloads, device, dtype, stopped)),
        gap_s=gap_s,
        left_out=left_out,
    )


def kernel_times(
    makers: Sequence[JobMaker], device: torch.device, stopped: IsCancelled
) -> tuple[list[tuple[Job, Timings]], tuple[str, ...]]:
    """Each job with its times, in random order, for as long as the budget lasts.

    Returns:
        The jobs that ran, without their buffers, and why others cannot run on the device.

    Raises:
        KeyboardInterrupt: `stopped()` is true.
    """
    timed: list[tuple[Job, Timings]] = []
    left_out: dict[str, None] = {}
    deadline = time.perf_counter() + _BUDGET_S
    for make in Random(0).sample(makers, len(makers)):  # noqa: S311 - not for cryptography
        if stopped():
            raise KeyboardInterrupt
        if time.perf_counter() > deadline:
            break
        try:
            job = make()
            found = kernel_timings(job.runs, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # this version of torch has no such kernel for the device
            left_out[first_line(error)] = None
        else:
            timed.append((replace(job, runs=()), found))
    return timed, tuple(left_out)


def require_steady(name: str, found: Iterable[Timings]) -> None:
    """Raise `CannotMeasure` if the times of most kernels vary more than on an idle device."""
    spread = statistics.median(each.most / each.least for each in found)
    if spread > _MOST_SPREAD:
        raise CannotMeasure(
            name,
            f"it is busy: the times of a kernel vary by a factor of {spread:.1f}; end what else "
            "computes on it",
        )


def samples(timed: Iterable[tuple[Job, Timings]], gap_s: float) -> tuple[TorchSample, ...]:
    """Each kernel with its median seconds, without the gap before it."""
    return tuple(
        TorchSample(job.kernel, max(found.median - gap_s, _LEAST_S)) for job, found in timed
    )


def peak_rates(timed: Iterable[tuple[Job, Timings]]) -> dict[str, float]:
    """The best FLOP/s of a matmul in each arithmetic."""
    rates: dict[str, float] = {}
    for job, found in timed:
        if job.kernel.kind == "matmul":
            rate = job.kernel.flops / found.median
            rates[job.kernel.dtype] = max(rates.get(job.kernel.dtype, 0.0), rate)
    return rates


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a product of matrices of size × size, as torch is set to compute it."""
    x = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / timings(lambda: x @ x, device).median


def copy_bandwidth(device: torch.device, nbytes: int) -> float:
    """Bytes/s of a large copy, read and written."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / timings(lambda: target.copy_(source), device, most=15).median
