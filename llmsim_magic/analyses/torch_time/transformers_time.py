"""Predicted time of a pass as a plain call of the model runs it, with its band."""

from collections.abc import Sequence

from llmsim_magic.analyses.time.band import DEFAULT_BAND, widest_band
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.time.pass_time import OperatorTime, PassTime
from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.analyses.torch_time.launch_time import (
    OperatorRun,
    makes_masks,
    operator_seconds,
    operator_work,
    run_operators,
)
from llmsim_magic.catalog.accelerators import entries
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.execution import Execution
from llmsim_magic.records.hardware.torch_kernel import (
    TorchCalibration,
    TorchKernel,
)
from llmsim_magic.records.trace.trace import Trace

# A stated guess, until others are measured: how much wider a band is on another device of the
# vendor whose device was, and for a pass of another kind than those that were.
_CARRIED_OVER = Band(0.75, 1.33)
_MEASURED_DTYPES = ("bfloat16", "float16")


def transformers_time(
    trace: Trace,
    accelerator: Accelerator,
    launch: str,
    calibration: TorchCalibration | None = None,
    *,
    stored: StoredDtypes | None = None,
) -> PassTime:
    """The predicted time of each operator of a pass and of the whole pass.

    Each kernel of the record is priced by its own class, none is fused. In a `graph` the device
    never waits for the host; under `eager` the host starts one kernel after the other, and the
    longer of host and device counts, as far as the queue between them allows.

    Args:
        trace: The pass.
        accelerator: The device.
        launch: `graph` or `eager`.
        calibration: Fitted constants of the device; those shipped with the package, by the
            device's figures, if None.
        stored: Dtypes that weights are stored in; as traced if None.

    Raises:
        CannotPredict: If the catalogue lacks a required figure.
        InvalidValue: If the device cannot compute in a dtype.
    """
    known = calibration or torch_calibration()
    with_masks = makes_masks(launch, trace.versions.get("transformers", ""))
    work = operator_work(trace, accelerator, stored=stored, with_masks=with_masks)
    runs = run_operators(work, accelerator, known.constants)
    seconds = operator_seconds(runs, launch, known.constants)
    is_like_measured = _is_like_measured(trace)
    kernel_band, pass_band = (
        band if is_like_measured else _carried_over(band)
        for band in (known.kernels, known.passes[launch])
    )
    kernel_band = band_on(accelerator, known, kernel_band)
    return PassTime(
        accelerator=accelerator,
        execution=Execution("transformers", launch),
        operators=_operator_times(runs, seconds, kernel_band, accelerator),
        band=band_on(accelerator, known, pass_band, known.carried.get(launch)),
        seen=known.device == accelerator.name and is_like_measured,
    )


def _operator_times(
    runs: Sequence[OperatorRun], seconds: Sequence[float], band: Band, accelerator: Accelerator
) -> tuple[OperatorTime, ...]:
    """The time of each operator; those of replayed layers share one."""
    known: dict[tuple[int, float], OperatorTime] = {}
    found = []
    for run, time in zip(runs, seconds, strict=True):
        key = id(run), time
        if key not in known:
            known[key] = _operator_time(run, time, band, accelerator)
        found.append(known[key])
    return tuple(found)


def _operator_time(
    run: OperatorRun, seconds: float, band: Band, accelerator: Accelerator
) -> OperatorTime:
    work, slowest = run.work, run.slowest
    binds: Binds = "launch"
    if slowest is not None and run.kernels_s > seconds / 2:
        binds = slowest[0].binds
    peak = accelerator.peak_flops.get(work.dtype, 0.0) * seconds
    bandwidth = (accelerator.bandwidth_bytes_per_s or 0.0) * seconds
    return OperatorTime(
        kind=_class_name(slowest[1]) if slowest else None,
        seconds=seconds,
        low=seconds * band.low,
        high=seconds * band.high,
        binds=binds,
        kernels=len(work.kernels),
        flops=work.flops,
        bytes=work.bytes,
        of_peak=work.flops / peak if peak else 0.0,
        of_bandwidth=min(work.bytes / bandwidth, 1.0) if bandwidth else 0.0,
    )


def _class_name(kernel: TorchKernel) -> str:
    """The class of a kernel, and of attention the implementation that PyTorch selects."""
    return (
        kernel.kind if kernel.implementation is None else f"{kernel.kind} {kernel.implementation}"
    )


def band_on(
    accelerator: Accelerator, known: TorchCalibration, band: Band, earned: Band | None = None
) -> Band:
    """The band on a device, from that on the device that was measured.

    Args:
        accelerator: The device.
        known: What was measured.
        band: The band on the measured device.
        earned: What runs on other devices of its vendor earned; a stated guess if None.
    """
    if accelerator.name == known.device:
        return band
    measured = entries().get(known.device)
    relatives = (measured.vendor, measured.kind) if measured else ()
    if (accelerator.vendor, accelerator.kind) != relatives:
        return DEFAULT_BAND
    wider = _carried_over(band)
    if earned is not None:
        wider = widest_band([wider, earned])
    return Band(max(wider.low, DEFAULT_BAND.low), min(wider.high, DEFAULT_BAND.high))


def _is_like_measured(trace: Trace) -> bool:
    """Whether a pass is of the kind that was measured: of a decoder in 16 bits."""
    return trace.model.generates and trace.model.dtype in _MEASURED_DTYPES


def _carried_over(band: Band) -> Band:
    return Band(band.low * _CARRIED_OVER.low, band.high * _CARRIED_OVER.high)
