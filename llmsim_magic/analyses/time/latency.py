"""Predicted latency of one forward pass on a device, per operator and in total."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from llmsim_magic.analyses.engine.engine_trace import engine_trace
from llmsim_magic.analyses.kernels.memoize import memoize_by_options
from llmsim_magic.analyses.time.band import pass_band
from llmsim_magic.analyses.time.kernel_sizes import (
    StoredDtypes,
    kernel_shapes,
    recorded_kernel_shapes,
    view_counts,
)
from llmsim_magic.analyses.time.pass_time import OperatorTime, PassTime, counted, recorded_orders
from llmsim_magic.analyses.time.roofline import Binds, Estimate, estimate, nearest_devices
from llmsim_magic.catalog.calibration import calibration as default_calibration
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration, Host, Regime
from llmsim_magic.records.hardware.execution import Execution
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
)
from llmsim_magic.records.trace.trace import Trace

# A graph is an engine's; what the host starts kernel by kernel is a plain call of the model.
_EXECUTIONS = {"graph": Execution("vllm", "graph"), "eager": Execution("transformers", "eager")}
NOT_MODELLED = (
    "not modelled: queueing under load, an engine's scheduler, sampling and detokenising, "
    "thermal throttling and, under vLLM, power throttling"
)
NOT_MODELLED_OF_A_STEP = (
    "not modelled: loading data, logging, saving checkpoints, and thermal throttling"
)
Estimator = Callable[..., Estimate]  # from a kernel shape, with or without launch overhead


def latency(
    trace: Trace,
    accelerator: Accelerator,
    calibration: Calibration | None = None,
    *,
    regime: Regime = "graph",
    stored: StoredDtypes | None = None,
) -> PassTime:
    """The predicted time of each operator of a pass and of the whole pass.

    In a `graph` the device never waits for the host, attention is an engine's, linear layers that
    read the same tensor are one matmul, and memory-bound operators between two matmuls are one
    kernel. In `eager` the host
    launches every ATen kernel, and an operator takes as long as the slower of host and device.

    Args:
        trace: The pass.
        accelerator: The device.
        calibration: Fitted constants; those shipped with the package if None.
        regime: How kernels are launched.
        stored: Dtypes that weights and cache are stored in; as traced if None.

    Raises:
        LlmsimError: If the device lacks a dtype or a required figure.
    """
    known = calibration or default_calibration()
    if regime == "graph":
        trace = engine_trace(trace)
    price = cache(partial(_fastest, accelerator=accelerator, known=known))
    kernel_shapes(trace, accelerator, regime, stored)  # raises where the device lacks a dtype
    work = _operator_work(trace, regime, stored or StoredDtypes())
    host = host_overhead(accelerator, known) if regime == "eager" else None
    recorded = tuple([_operator_time(each, accelerator, host, price) for each in work])
    steps = recorded_orders(trace)
    return PassTime(
        accelerator=accelerator,
        execution=_EXECUTIONS[regime],
        distinct=recorded,
        steps=steps,
        band=pass_band(counted(recorded, steps), known.passes, trace.workload.phase),
        seen=any(accelerator.name in devices for devices in known.fits.values()),
    )


@dataclass(frozen=True, slots=True)
class _Started:
    """A kernel as it is started: a share of the one that it is merged into.

    `launched` is False if it is fused with the kernel before it.
    """

    size: KernelShape
    share: float = 1.0
    launched: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _OperatorWork:
    """The kernels of a recorded operator, how each is started, and what they add up to.

    `dtype` is that of the products; `joined` is how many devices an exchange among the kernels
    reaches over, 0 if there is none.
    """

    kernels: tuple[KernelShape, ...]
    started: tuple[_Started, ...]
    views: int
    flops: float
    bytes: float
    dtype: str
    joined: int


@memoize_by_options
def _operator_work(trace: Trace, regime: Regime, stored: StoredDtypes) -> tuple[_OperatorWork, ...]:
    """The work of each recorded operator, which is the same on every device."""
    shapes = recorded_kernel_shapes(trace, regime, stored)
    if regime == "eager":
        started = [tuple(map(_Started, each)) for each in shapes]
    else:
        started = _started_in_graph(trace, shapes)
    return tuple(
        _OperatorWork(
            kernels=each,
            started=own,
            views=views,
            flops=sum(size.flops for size in each),
            bytes=sum(size.bytes for size in each),
            dtype=next(
                (size.dtype for size in each if isinstance(size, Matmul | Attention)), "bf16"
            ),
            joined=max((size.joined for size in each if isinstance(size, Collective)), default=0),
        )
        for each, own, views in zip(shapes, started, view_counts(trace), strict=True)
    )


def _dtype(kernels: Sequence[KernelShape]) -> str:
    worked = (size.dtype for size in kernels if isinstance(size, Matmul | Attention))
    return next(worked, "bf16")


def _started_in_graph(
    trace: Trace, shapes: Sequence[Sequence[KernelShape]]
) -> list[tuple[_Started, ...]]:
    """Kernels of a graph: linear layers of one input are merged, streams in a row are fused."""
    merged = _merged_linears(trace, shapes)
    found = []
    previous_streams = False
    for order, each in enumerate(shapes):
        started = []
        for place, size in enumerate(each):
            streams = isinstance(size, Stream)
            whole, share = merged.get((order, place), (size, 1.0))
            started.append(_Started(whole, share, not (previous_streams and streams)))
            previous_streams = streams
        found.append(tuple(started))
    return found


def host_overhead(accelerator: Accelerator, calibration: Calibration) -> Host:
    """Host time per kernel launch, measured on this device or averaged over related ones."""
    hosts = calibration.hosts
    if accelerator.name in hosts:
        return hosts[accelerator.name]
    if not hosts:
        return Host(0.0, 0.0, 0.0)
    near = [hosts[name] for name in nearest_devices(accelerator, hosts)]
    return Host(*(sum(getattr(h, n) for h in near) / len(near) for n in Host.__slots__))


def _fastest(
    size: KernelShape, *, accelerator: Accelerator, known: Calibration, launched: bool
) -> Estimate:
    """The faster of NCCL and the engine's all-reduce, which engines use for small messages."""
    ways: list[KernelShape] = [size]
    if isinstance(size, Collective) and size.of == "all_reduce":
        ways.append(replace(size, library="engine"))
    times = [estimate(way, accelerator, known, cold=True, launched=launched) for way in ways]
    return min(times, key=lambda time: time.seconds)


def _merged_linears(
    trace: Trace, work: Sequence[Sequence[KernelShape]]
) -> dict[tuple[int, int], tuple[Matmul, float]]:
    """Linear layers that read the same tensor, as one matmul and the share of each layer."""
    readers: dict[tuple[object, ...], list[tuple[int, int, Matmul]]] = {}
    for order, each in enumerate(work):
        inputs = trace.recorded.operators[order].inputs
        for place, size in enumerate(each):
            if isinstance(size, Matmul) and size.groups == 1 and inputs:
                # Partial blocks of scales change the mean bits slightly; ignore that.
                bits = None if size.weight_bits is None else round(size.weight_bits, 1)
                key = (inputs[0], size.m, size.k, size.dtype, bits)
                readers.setdefault(key, []).append((order, place, size))
    found = {}
    for linears in readers.values():
        columns = sum(size.n for _, _, size in linears)
        whole = replace(linears[0][2], n=columns)
        for order, place, size in linears:
            found[order, place] = (whole, size.n / columns)
    return found


def _operator_time(
    work: _OperatorWork, accelerator: Accelerator, host: Host | None, price: Estimator
) -> OperatorTime:
    """The time of an operator whose kernels run in sequence.

    Args:
        work: its kernels.
        accelerator: the device.
        host: what the host takes to start kernels one by one; None in a graph. A CPU runs both.
        price: the time of one kernel.
    """
    each = [_scaled(price(one.size, launched=one.launched), one.share) for one in work.started]
    added_s = minimum_s = 0.0
    if host is not None:
        host_s = host.operator_s + work.views * host.view_s
        if accelerator.kind == "cpu":
            added_s = host_s
        else:
            minimum_s = host_s + len(work.kernels) * host.kernel_s
    busy = math.fsum(time.seconds for time in each)
    seconds = max(busy + added_s, minimum_s)
    longest = max(zip(each, work.kernels, strict=True), key=_first_seconds, default=None)
    binds: Binds = "launch"
    if longest is not None and busy > seconds / 2:
        binds = longest[0].binds
    peak = accelerator.peak_flops.get(work.dtype, 0.0) * seconds
    rate = accelerator.bandwidth_bytes_per_s
    if work.joined:
        rate = accelerator.among(work.joined).interconnect_bytes_per_s
    bandwidth = (rate or 0.0) * seconds
    return OperatorTime(
        kind=longest[1].kind if longest else None,
        seconds=seconds,
        low=max(math.fsum(time.low for time in each) + added_s, minimum_s),
        high=max(math.fsum(time.high for time in each) + added_s, minimum_s),
        binds=binds,
        kernels=len(work.kernels),
        flops=work.flops,
        bytes=work.bytes,
        of_peak=work.flops / peak if peak else 0.0,
        # A cache may be faster than the memory.
        of_bandwidth=min(work.bytes / bandwidth, 1.0) if bandwidth else 0.0,
    )


def _first_seconds(pair: tuple[Estimate, KernelShape]) -> float:
    return pair[0].seconds


def _scaled(time: Estimate, share: float) -> Estimate:
    if share == 1.0:
        return time
    return Estimate(time.seconds * share, time.low * share, time.high * share, time.binds)
