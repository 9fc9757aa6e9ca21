"""Predicted time of a pass as transformers runs it: in a CUDA graph, or started from Python."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, collective_shape, view_counts
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.analyses.torch_time.kernel_time import KernelTime, kernel_time
from llmsim_magic.analyses.torch_time.kernels import torch_kernels
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.kernel_shapes import Collective
from llmsim_magic.records.hardware.torch_kernel import TorchConstants, TorchKernel
from llmsim_magic.records.trace.trace import Trace

_IDLE_SHARE = 0.3  # of a call: dropout in inference against a linear layer, 3.2 to 10.4 µs on a CPU
_SEVERAL_LAUNCHES = ("sort", "topk", "gathered", "grouped matmul")
Each = TypeVar("Each")
Result = TypeVar("Result")
_SKIPS_MASKS = (5, 18)  # the first release of transformers that skips masks while it is captured


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWork:
    """The kernels of an operator, its exchanges with other devices, and its number of views."""

    kernels: tuple[TorchKernel, ...]
    sent: tuple[Collective, ...]
    views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRun:
    """The work of an operator with the times of its kernels and exchanges."""

    work: OperatorWork
    times: tuple[KernelTime, ...]
    sent_s: float

    def device_s(self, gap_s: float, slower: float) -> float:
        """Seconds on the device, with a gap before each kernel and arithmetic `slower` times."""
        return self.sent_s + sum(
            gap_s + (time.seconds * slower if time.binds == "compute" else time.seconds)
            for time in self.times
        )


def makes_masks(launch: str, version: str) -> bool:
    """Whether a release of transformers makes masks under a launch that it skips otherwise.

    Up to 5.17 it takes a stream that a CUDA graph captures for a traced model, whose mask it may
    not look at, and repeats the keys and values of grouped heads for an attention that reads a
    mask.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    is_old = found is not None and tuple(map(int, found.groups())) < _SKIPS_MASKS
    return launch == "graph" and is_old


def operator_work(
    trace: Trace,
    accelerator: Accelerator,
    *,
    stored: StoredDtypes | None = None,
    with_masks: bool = False,
) -> tuple[OperatorWork, ...]:
    """The work of each operator of the pass, in order, with replayed layers."""
    record = trace.recorded
    kernels = torch_kernels(record, accelerator, stored=stored, with_masks=with_masks)
    recorded = [
        OperatorWork(kernels=each, sent=sent, views=views)
        for each, sent, views in zip(kernels, _sent(trace), view_counts(trace), strict=True)
    ]
    return tuple(trace.expand_replays(recorded))


def run_operators(
    work: Sequence[OperatorWork], accelerator: Accelerator, constants: TorchConstants
) -> tuple[OperatorRun, ...]:
    """The time of each kernel.

    Raises:
        CannotPredict: If the catalogue lacks a figure of the device.
        InvalidValue: If the device cannot compute in a dtype.
    """
    price = cache(lambda kernel: kernel_time(kernel, accelerator, constants))

    def run(each: OperatorWork) -> OperatorRun:
        return OperatorRun(
            work=each,
            times=tuple(map(price, each.kernels)),
            sent_s=sum(estimate(size, accelerator, calibration()).seconds for size in each.sent),
        )

    return tuple(_once_for_replays(run, work))


def _once_for_replays(compute: Callable[[Each], Result], values: Sequence[Each]) -> list[Result]:
    """A result for each value, computed once for the operators of replayed layers."""
    results = {key: compute(each) for key, each in {id(each): each for each in values}.items()}
    return [results[id(each)] for each in values]


def operator_seconds(
    runs: Sequence[OperatorRun], launch: str, constants: TorchConstants
) -> list[float]:
    """Seconds of each operator under a launch, `graph` or `eager`."""
    return _SECONDS[launch](runs, constants)


def graph_seconds(runs: Sequence[OperatorRun], constants: TorchConstants) -> list[float]:
    """Seconds of each operator in a CUDA graph, where the device never waits for the host."""
    slower = _slower(runs, constants)
    return _once_for_replays(lambda run: run.device_s(constants.gap_s, slower), runs)


def eager_seconds(runs: Sequence[OperatorRun], constants: TorchConstants) -> list[float]:
    """Seconds of each operator whose kernels the host starts one by one.

    The host runs ahead of the device while the device is busy; where it does not, the device
    waits for it. They sum to the time until both are done.
    """
    slower = _slower(runs, constants)
    called = _once_for_replays(lambda run: host_seconds(run.work, constants), runs)
    worked = _once_for_replays(lambda run: run.device_s(0.0, slower), runs)
    host = device = 0.0
    seconds = []
    for each, call_s, busy in zip(runs, called, worked, strict=True):
        before = max(host, device)
        start = host
        host += call_s
        if each.times or each.sent_s:
            last = each.times[-1].seconds if each.times else 0.0
            device = max(max(device, start) + busy, host + last)
        seconds.append(max(host, device) - before)
    return seconds


_SECONDS = {"graph": graph_seconds, "eager": eager_seconds}


def host_seconds(work: OperatorWork, constants: TorchConstants) -> float:
    """What the host takes to call an operator, and to start its kernels and views.

    One that starts nothing, such as dropout in inference, returns early.
    """
    if not (work.kernels or work.views or work.sent):
        return _IDLE_SHARE * constants.host_call_s
    gathers = sum(kernel.kind in _SEVERAL_LAUNCHES for kernel in work.kernels)
    return (
        constants.host_call_s
        + len(work.kernels) * constants.host_kernel_s
        + gathers * constants.host_gather_s
        + work.views * constants.host_view_s
    )


def _slower(runs: Sequence[OperatorRun], constants: TorchConstants) -> float:
    """How much longer arithmetic takes once the limit of power holds the clock down."""
    times = [time for each in runs for time in each.times]
    whole = sum(time.seconds for time in times)
    busy = sum(time.seconds for time in times if time.binds == "compute")
    return 1 + constants.hot_share * busy / whole if whole else 1.0


def _sent(trace: Trace) -> list[tuple[Collective, ...]]:
    record, ranks = trace.recorded, trace.model.parallel.width
    return [
        tuple(
            size
            for kernel in kernels
            if (size := collective_shape(record, kernel, ranks)) is not None
        )
        for kernels in record.kernels_by_operator
    ]
