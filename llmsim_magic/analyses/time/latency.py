"""Predicted latency of one forward pass on a device, per operator and in total."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from llmsim_magic.analyses.engine.engine_trace import engine_trace
from llmsim_magic.analyses.time.band import pass_band
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, kernel_shapes, view_counts
from llmsim_magic.analyses.time.pass_time import OperatorTime, PassTime
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
    work = kernel_shapes(trace, accelerator, regime, stored)
    estimate_kernel = cache(partial(_fastest, accelerator=accelerator, known=known))
    if regime == "eager":
        host = host_overhead(accelerator, known)
        views = view_counts(trace)
        recorded = [
            _eager_time(each, views[order], accelerator, host, estimate_kernel)
            for order, each in enumerate(work)
        ]
    else:
        recorded = _graph_times(trace, work, accelerator, estimate_kernel)
    operators = tuple(trace.expand_replays(recorded))
    seen = any(accelerator.name in devices for devices in known.fits.values())
    return PassTime(
        accelerator=accelerator,
        execution=_EXECUTIONS[regime],
        operators=operators,
        band=pass_band(operators, known.passes, trace.workload.phase),
        seen=seen,
    )


def host_overhead(accelerator: Accelerator, calibration: Calibration) -> Host:
    """Host time per kernel launch, measured on this device or averaged over related ones."""
    hosts = calibration.hosts
    if accelerator.name in hosts:
        return hosts[accelerator.name]
    if not hosts:
        return Host(0.0, 0.0, 0.0)
    near = [hosts[name] for name in nearest_devices(accelerator, hosts)]
    return Host(*(sum(getattr(h, n) for h in near) / len(near) for n in Host.__slots__))


def _eager_time(
    work: Sequence[KernelShape],
    views: int,
    accelerator: Accelerator,
    host: Host,
    estimate_kernel: Estimator,
) -> OperatorTime:
    """The time of an operator whose kernels the host launches one by one; a CPU runs both."""
    each = [estimate_kernel(size, launched=True) for size in work]
    host_s = host.operator_s + views * host.view_s
    if accelerator.kind == "cpu":
        return _operator(work, each, accelerator, host_s)
    return _operator(work, each, accelerator, 0.0, host_s + len(work) * host.kernel_s)


def _graph_times(
    trace: Trace,
    work: Sequence[Sequence[KernelShape]],
    accelerator: Accelerator,
    estimate_kernel: Estimator,
) -> list[OperatorTime]:
    shares = _merged_linears(trace, work)
    found = []
    previous_streams = False
    for order, each in enumerate(work):
        times = []
        for place, size in enumerate(each):
            merged, share = shares.get((order, place), (size, 1.0))
            is_fused = previous_streams and isinstance(size, Stream)
            time = estimate_kernel(merged, launched=not is_fused)
            times.append(_scaled(time, share))
            previous_streams = isinstance(size, Stream)
        found.append(_operator(each, times, accelerator))
    return found


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


def _operator(
    work: Sequence[KernelShape],
    each: Sequence[Estimate],
    accelerator: Accelerator,
    host_s: float = 0.0,
    minimum_s: float = 0.0,
) -> OperatorTime:
    """Kernels in sequence; the host adds `host_s`, and the operator takes at least `minimum_s`."""
    busy = math.fsum(time.seconds for time in each)
    seconds = max(busy + host_s, minimum_s)
    low = max(math.fsum(time.low for time in each) + host_s, minimum_s)
    high = max(math.fsum(time.high for time in each) + host_s, minimum_s)
    longest = max(zip(each, work, strict=True), key=lambda pair: pair[0].seconds, default=None)
    binds: Binds = "launch"
    if longest is not None and busy > seconds / 2:
        binds = longest[0].binds
    flops = sum(size.flops for size in work)
    moved = sum(size.bytes for size in work)
    dtype = next((size.dtype for size in work if isinstance(size, Matmul | Attention)), "bf16")
    peak = accelerator.peak_flops.get(dtype, 0.0) * seconds
    sends = any(isinstance(size, Collective) for size in work)
    wire, memory = accelerator.interconnect_bytes_per_s, accelerator.bandwidth_bytes_per_s
    bandwidth = ((wire if sends else memory) or 0.0) * seconds
    return OperatorTime(
        kind=longest[1].kind if longest else None,
        seconds=seconds,
        low=low,
        high=high,
        binds=binds,
        kernels=len(work),
        flops=flops,
        bytes=moved,
        of_peak=flops / peak if peak else 0.0,
        of_bandwidth=min(moved / bandwidth, 1.0) if bandwidth else 0.0,  # a cache may be faster
    )


def _scaled(time: Estimate, share: float) -> Estimate:
    return Estimate(time.seconds * share, time.low * share, time.high * share, time.binds)
