"""`--hardware local` and `local-cpu`: measure this machine's GPU or CPU once per process."""

import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from llmsim_magic.analyses.time.band import DEFAULT_BAND
from llmsim_magic.analyses.time.calibration_fit import band_of, fit
from llmsim_magic.analyses.torch_time.constants_fit import PassSample, fit_constants
from llmsim_magic.analyses.torch_time.kernel_time import kernel_time
from llmsim_magic.analyses.torch_time.launch_time import makes_masks, operator_work
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.exclusive import ExclusiveLock
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration, Sample
from llmsim_magic.records.hardware.torch_kernel import TorchCalibration
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.models.workloads import trace_workload
from llmsim_magic.simulate.request import LOCAL, Build

if TYPE_CHECKING:
    from llmsim_magic.capture.measure.gpu import GpuMeasurement
    from llmsim_magic.capture.measure.model_passes import ModelPass

# Two benchmarks at the same time would slow each other down.
_measuring = ExclusiveLock("this machine is being measured")


def local(name: str = LOCAL) -> tuple[Accelerator, Calibration | TorchCalibration]:
    """A device of this machine and its calibration; the first call benchmarks it.

    Args:
        name: `local` for the GPU, or the CPU of a machine without one; `local-cpu` for the CPU.

    Returns:
        A CPU with the calibration of its kernels, of which a class without measurements gets the
        default band, a factor of three. A GPU with that of PyTorch's kernels; an engine's are not
        measured, but carried over from its relatives.

    Raises:
        CannotMeasure: the GPU is busy or too small.
    """
    with DeferredInterrupt(), _measuring:
        return _measured_cpu() if _gpu_name(name) is None else _measured_gpu()


def benchmark_message(name: str) -> str:
    """What `local` or `local-cpu` is about to measure, and for how long."""
    gpu = _gpu_name(name)
    if gpu is None:
        what, how_long = "the CPU of this machine", "about 30 seconds"
    else:
        what, how_long = f"the GPU of this machine, {gpu}", "up to 2 minutes"
    return f"benchmarking kernels on {what} ({how_long}, once per session)"


def measures_gpu(name: str) -> bool:
    """Whether `local` or `local-cpu` is a GPU on this machine."""
    return _gpu_name(name) is not None


def _gpu_name(name: str) -> str | None:
    from llmsim_magic.capture.measure.cuda_device import cuda_name

    return cuda_name() if name == LOCAL else None


@cache
def _measured_gpu() -> tuple[Accelerator, TorchCalibration]:
    from llmsim_magic.capture.measure.gpu import measure

    found = measure()
    return found.accelerator, torch_calibration_of(found)


def torch_calibration_of(found: "GpuMeasurement") -> TorchCalibration:
    """Fit the constants of PyTorch's kernels to a measured GPU, from those that ship.

    The band of kernels is what the fit leaves over. The bands of passes are those that other models
    earned on the device that ships, because a few models cannot tell the spread of all.
    """
    shipped = torch_calibration()
    start = replace(shipped.constants, gap_s=found.gap_s or shipped.constants.gap_s)
    passes = [_pass_sample(each, found.accelerator) for each in found.passes]
    constants = fit_constants(found.samples, passes, found.accelerator, start)
    logs = [
        math.log(each.seconds / kernel_time(each.kernel, found.accelerator, constants).seconds)
        for each in found.samples
    ]
    return TorchCalibration(
        device=found.accelerator.name,
        constants=constants,
        kernels=band_of(np.array(logs)),
        passes=shipped.passes,
        training=shipped.training,
        steps=shipped.steps,
        samples=len(found.samples) + len(passes),
        models=tuple(dict.fromkeys(each.model for each in found.passes)),
        sources=(
            found.accelerator.source,
            *(f"kernels that were not measured: {reason}" for reason in found.left_out),
        ),
    )


def _pass_sample(measured: "ModelPass", accelerator: Accelerator) -> PassSample:
    recipe = model_recipe(measured.model, Build(dtype=measured.dtype))
    trace = trace_workload(recipe, measured.workload, replay=True)
    with_masks = makes_masks(measured.launch, trace.versions.get("transformers", ""))
    work = operator_work(trace, accelerator, with_masks=with_masks)
    return PassSample(work=work, launch=measured.launch, seconds=measured.seconds)


@cache
def _measured_cpu() -> tuple[Accelerator, Calibration]:
    from llmsim_magic.capture.measure.cpu import measure

    found = measure()
    kinds: dict[str, list[Sample]] = {}
    for sample in found.samples:
        kinds.setdefault(sample.size.kind, []).append(sample)
    accelerator = found.accelerator
    source = (accelerator.source,)
    fits = {
        kind: {accelerator.name: fit(some, accelerator, source)} for kind, some in kinds.items()
    }
    unseen = dict.fromkeys(fits, DEFAULT_BAND)
    return accelerator, Calibration(fits, unseen, {accelerator.name: found.host})
