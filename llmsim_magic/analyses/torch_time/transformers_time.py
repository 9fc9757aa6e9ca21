"""Predicted time of a pass as a plain call of the model runs it, with its band."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmsim_magic.analyses.data_parallel.whole_parameters import COPIES
from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.time.band import DEFAULT_BAND, widest_band
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.time.pass_time import OperatorTime, PassTime, recorded_orders
from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.analyses.torch_time.exchange_time import exchange_seconds, waited_seconds
from llmsim_magic.analyses.torch_time.launch_time import (
    OperatorRun,
    OperatorWork,
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
from llmsim_magic.records.hardware.kernel_shapes import Collective
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
    exchanges = {
        order: math.fsum(exchange_seconds(size, accelerator) for size in run.work.overlapped)
        for order, run in enumerate(runs)
        if run.work.overlapped
    }
    waited: dict[int, float] = {}
    if exchanges:  # of ranks, each of whose operators is recorded
        waited = waited_seconds(trace, seconds, exchanges)
        keys, steps = list(enumerate(seconds)), tuple(range(len(seconds)))
    return PassTime(
        accelerator=accelerator,
        execution=Execution("transformers", launch),
        distinct=tuple(
            [
                _operator_time(
                    runs[place],
                    _Seconds(
                        once=time,
                        times_run=_times_run(trace, place, runs[place].work),
                        exchanged=exchanges.get(place, 0.0) + runs[place].sent_s,
                        waited=waited.get(place, 0.0),
                    ),
                    kernel_band,
                    accelerator,
                )
                for place, time in keys
            ]
        ),
        steps=steps,
        band=band_on(accelerator, known, pass_band, known.carried.get(launch)),
        seen=known.device == accelerator.name and is_like_measured,
    )


def _times_run(trace: Trace, operator: int, work: OperatorWork) -> int:
    """How often a step runs a recorded operator: each micro-batch, but for the optimizer.

    DistributedDataParallel exchanges gradients once, after the last, as by its `no_sync`.
    """
    found, training = trace.recorded.operators[operator], trace.training
    if training is None or found.part == "optimizer":
        return 1
    is_exchange = bool(work.overlapped) or found.op in COPIES
    is_ddp = training.dp > 1 and training.zero < 2
    return 1 if is_ddp and is_exchange else training.accumulate


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seconds:
    """Seconds of an operator.

    Attributes:
        once: Of one run, with what the next operator waits for.
        times_run: How often a step runs it.
        exchanged: Of its exchanges in one run, also where they overlap with other operators.
        waited: For which the step waits, in one run, for exchanges that overlap.
    """

    once: float
    times_run: int
    exchanged: float
    waited: float

    @property
    def whole(self) -> float:
        return (self.once + self.waited) * self.times_run

    @property
    def is_exchange(self) -> bool:
        return self.exchanged > self.once / 2


def _operator_time(
    run: OperatorRun, seconds: _Seconds, band: Band, accelerator: Accelerator
) -> OperatorTime:
    work, slowest, once_s = run.work, run.slowest, seconds.once
    kind, nbytes = (_class_name(slowest[1]) if slowest else None), work.bytes
    binds: Binds = "launch"
    if slowest is not None and run.kernels_s > once_s / 2:
        binds = slowest[0].binds
    peak = accelerator.peak_flops.get(work.dtype, 0.0) * once_s
    bandwidth = (accelerator.bandwidth_bytes_per_s or 0.0) * once_s
    if seconds.is_exchange:
        largest = max(work.exchanges, key=_message)
        kind, binds, nbytes = largest.kind, "interconnect", sum(e.bytes for e in work.exchanges)
        link = accelerator.among(largest.joined).interconnect_bytes_per_s
        bandwidth = (link or 0.0) * seconds.exchanged
    return OperatorTime(
        kind=kind,
        seconds=seconds.whole,
        low=seconds.whole * band.low,
        high=seconds.whole * band.high,
        binds=binds,
        kernels=(work.launches + len(work.exchanges)) * seconds.times_run,
        flops=work.flops * seconds.times_run,
        bytes=nbytes * seconds.times_run,
        of_peak=work.flops / peak if peak else 0.0,
        of_bandwidth=min(nbytes / bandwidth, 1.0) if bandwidth else 0.0,
    )


def _message(size: Collective) -> float:
    return size.message


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
    other precisions, but never in a CUDA graph. Nothing was measured on several devices.
    """
    if trace.ranks > 1:
        return False
    if trace.training is not None:
        return launch == "eager"
    return trace.model.generates and trace.model.dtype in _MEASURED_DTYPES


def _carried_over(band: Band) -> Band:
    return Band(band.low * _CARRIED_OVER.low, band.high * _CARRIED_OVER.high)
