"""Predicted time of a pass as a plain call of the model runs it, with its band."""

from collections.abc import Sequence
from typing import TypeVar

from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.time.band import DEFAULT_BAND, widest_band
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.time.pass_time import OperatorTime, PassTime, recorded_orders
from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.analyses.torch_time.exchange_time import exchange_seconds, with_exchanges
from llmsim_magic.analyses.torch_time.launch_time import (
    OperatorRun,
    eager_seconds,
    graph_seconds,
    makes_masks,
    recorded_work,
    run_operators,
)
from llmsim_magic.catalog.accelerators import entries
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.execution import Execution
from llmsim_magic.records.hardware.torch_kernel import (
    TorchCalibration,
    TorchConstants,
    TorchKernel,
)
from llmsim_magic.records.trace.trace import Trace

# A stated guess, until others are measured: how much wider a band is on another device of the
# vendor whose device was, and for a pass of another kind than those that were.
_CARRIED_OVER = Band(0.75, 1.33)
Key = TypeVar("Key", bound=tuple[int, float])
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

    Of a training step, every pass but the optimizer's runs once for each micro-batch, which its
    operators' times include. Exchanges of data parallelism run beside the kernels.

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
    runs = _runs(trace, accelerator, known.constants, stored or StoredDtypes(), with_masks)
    is_like_measured = _is_like_measured(trace, launch)
    is_step = trace.training is not None
    kernel_band, pass_band = (
        band if is_like_measured else _carried_over(band)
        for band in (
            known.kernels,
            known.steps if is_step and launch == "eager" else known.passes[launch],
        )
    )
    kernel_band = band_on(accelerator, known, kernel_band)
    orders = recorded_orders(trace)
    if launch == "graph":
        seconds = graph_seconds(runs, orders, known.constants)
        keys, steps = list(enumerate(seconds)), orders
        seconds = [seconds[order] for order in orders]
    else:
        training = None if trace.training is None else known.training
        seconds = eager_seconds(runs, orders, known.constants, training)
        keys, steps = _numbered(list(zip(orders, seconds, strict=True)))
    if trace.training is not None and trace.training.dp > 1:
        seconds = with_exchanges(trace, seconds, exchange_seconds(trace, accelerator))
        keys, steps = _numbered(list(zip(orders, seconds, strict=True)))
    return PassTime(
        accelerator=accelerator,
        execution=Execution("transformers", launch),
        distinct=tuple(
            [
                _operator_time(
                    runs[place], time, kernel_band, accelerator, _times_run(trace, place)
                )
                for place, time in keys
            ]
        ),
        steps=steps,
        band=band_on(accelerator, known, pass_band, known.carried.get(launch)),
        seen=known.device == accelerator.name and is_like_measured,
    )


def _times_run(trace: Trace, operator: int) -> int:
    """How often a step runs a recorded operator: each micro-batch, but for the optimizer."""
    if trace.training is None or trace.recorded.operators[operator].part == "optimizer":
        return 1
    return trace.training.accumulate


@memoize_by_options
def _runs(
    trace: Trace,
    accelerator: Accelerator,
    constants: TorchConstants,
    stored: StoredDtypes,
    with_masks: bool,
) -> tuple[OperatorRun, ...]:
    """The recorded operators of a pass on a device, which both launches run."""
    work = recorded_work(trace, accelerator.architecture, stored, with_masks)
    return run_operators(work, accelerator, constants)


def _numbered(keys: Sequence[Key]) -> tuple[list[Key], tuple[int, ...]]:
    """The different keys in the order of their first occurrences, and the index of each."""
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return [*places], tuple([places[key] for key in keys])


def _operator_time(
    run: OperatorRun, once_s: float, band: Band, accelerator: Accelerator, times_run: int
) -> OperatorTime:
    work, slowest, seconds = run.work, run.slowest, once_s * times_run
    binds: Binds = "launch"
    if slowest is not None and run.kernels_s > once_s / 2:
        binds = slowest[0].binds
    peak = accelerator.peak_flops.get(work.dtype, 0.0) * once_s
    bandwidth = (accelerator.bandwidth_bytes_per_s or 0.0) * once_s
    return OperatorTime(
        kind=_class_name(slowest[1]) if slowest else None,
        seconds=seconds,
        low=seconds * band.low,
        high=seconds * band.high,
        binds=binds,
        kernels=work.launches * times_run,
        flops=work.flops * times_run,
        bytes=work.bytes * times_run,
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


def _is_like_measured(trace: Trace, launch: str) -> bool:
    """Whether a pass is of the kind that was measured.

    Forwards were those of decoders in 16 bits. Training steps were also those of encoders, and in
    other precisions, but never in a CUDA graph.
    """
    if trace.training is not None:
        return launch == "eager"
    return trace.model.generates and trace.model.dtype in _MEASURED_DTYPES


def _carried_over(band: Band) -> Band:
    return Band(band.low * _CARRIED_OVER.low, band.high * _CARRIED_OVER.high)
