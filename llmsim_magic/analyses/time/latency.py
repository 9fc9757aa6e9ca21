"""How long one forward pass takes on a device, per operator and in all, each with its band."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

from llmsim_magic.analyses.time.band import pass_band
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes, kernel_shapes
from llmsim_magic.analyses.time.roofline import Binds, Estimate, estimate, relatives
from llmsim_magic.catalog.calibration import calibration as shipped
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band, Calibration, Host, Regime
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    KernelShape,
    Matmul,
    Stream,
)
from llmsim_magic.records.trace.trace import Trace

NOT_MODELLED = (
    "not modelled: queueing under load, an engine's scheduler, sampling and detokenising, "
    "clocks that heat or power hold down"
)
NOTHING = Estimate(0.0, 0.0, 0.0, "launch")
Price = Callable[..., Estimate]  # of a size, `launched` or not


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One operator's seconds with the band its class earned, and what binds it.

    `kind` is the class of the kernel that takes longest, None where no kernel runs. `flops` and
    `bytes` are those kernels'; `of_peak` and `of_bandwidth` the shares of the device's that they
    would reach; an exchange's bytes are those on the link, and so is its bandwidth.
    """

    kind: str | None
    seconds: float
    low: float
    high: float
    binds: Binds
    kernels: int
    flops: float
    bytes: float
    of_peak: float
    of_bandwidth: float

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte moved."""
        return self.flops / self.bytes if self.bytes else None


@dataclass(frozen=True)
class PassTime:
    """A pass on a device: `operators` in execution order; `low` and `high` hold nine of ten.

    `seen` says whether the device was measured, or its relatives speak for it.
    """

    accelerator: Accelerator
    regime: Regime
    operators: tuple[OperatorTime, ...]
    band: Band
    seen: bool

    @cached_property
    def seconds(self) -> float:
        return math.fsum(operator.seconds for operator in self.operators)

    @property
    def low(self) -> float:
        return self.seconds * self.band.low

    @property
    def high(self) -> float:
        return self.seconds * self.band.high

    @cached_property
    def bound(self) -> dict[str, float]:
        """The share of the seconds that each resource binds, most first."""
        bound = _bound(self.operators)
        return {name: each / self.seconds for name, each in bound.items() if self.seconds}

    def of(self, orders: Iterable[int]) -> Estimate:
        """The time of some operators together, as of a module or a layer, and what binds most."""
        chosen = [self.operators[order] for order in orders]
        if not chosen:
            return NOTHING
        return Estimate(
            math.fsum(operator.seconds for operator in chosen),
            math.fsum(operator.low for operator in chosen),
            math.fsum(operator.high for operator in chosen),
            next(iter(_bound(chosen))),
        )


def _bound(operators: Iterable[OperatorTime]) -> dict[Binds, float]:
    """The seconds that each resource binds, most first."""
    seconds: dict[Binds, float] = {}
    for operator in operators:
        seconds[operator.binds] = seconds.get(operator.binds, 0.0) + operator.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def latency(
    trace: Trace,
    accelerator: Accelerator,
    calibration: Calibration | None = None,
    *,
    regime: Regime = "graph",
    stored: StoredDtypes | None = None,
) -> PassTime:
    """Seconds of each operator of a pass, and of the pass.

    In a `graph` the device never waits for the host, layers that read the same tensor are one
    product, and what streams between two products is one kernel. `eager` starts every ATen kernel
    from the host: an operator takes as long as the slower of the two needs for it.

    Raises `LlmsimError` for a dtype or a figure that the device lacks.
    """
    known = calibration or shipped()
    work = kernel_shapes(trace, accelerator, regime, stored)
    price = cache(partial(_quickest, accelerator=accelerator, known=known))
    if regime == "eager":
        host = host_of(accelerator, known)
        views = _views(trace)
        recorded = [
            _eager(each, views[order], accelerator, host, price) for order, each in enumerate(work)
        ]
    else:
        recorded = _captured(trace, work, accelerator, price)
    operators = tuple(trace.expand_replays(recorded))
    seen = any(accelerator.name in devices for devices in known.fits.values())
    return PassTime(
        accelerator,
        regime,
        operators,
        pass_band(operators, known.passes, trace.workload.phase),
        seen,
    )


def host_of(accelerator: Accelerator, calibration: Calibration) -> Host:
    """What starting kernels costs the host, here or with the nearest relatives."""
    hosts = calibration.hosts
    if accelerator.name in hosts:
        return hosts[accelerator.name]
    if not hosts:
        return Host(0.0, 0.0, 0.0)
    near = [hosts[name] for name in relatives(accelerator, hosts)]
    return Host(*(sum(getattr(h, n) for h in near) / len(near) for n in Host.__slots__))


def _eager(
    work: Sequence[KernelShape], views: int, accelerator: Accelerator, host: Host, price: Price
) -> OperatorTime:
    """An operator whose kernels the host starts one by one; a CPU is its own host."""
    each = [price(size, launched=True) for size in work]
    waits = host.operator_s + views * host.view_s
    if accelerator.kind == "cpu":
        return _operator(work, each, accelerator, waits)
    return _operator(work, each, accelerator, 0.0, waits + len(work) * host.kernel_s)


def _captured(
    trace: Trace, work: Sequence[Sequence[KernelShape]], accelerator: Accelerator, price: Price
) -> list[OperatorTime]:
    shares = _merged(trace, work)
    found = []
    streaming = False
    for order, each in enumerate(work):
        times = []
        for place, size in enumerate(each):
            merged, share = shares.get((order, place), (size, 1.0))
            goes_on = streaming and isinstance(size, Stream)
            time = price(merged, launched=not goes_on)
            times.append(_part(time, share))
            streaming = isinstance(size, Stream)
        found.append(_operator(each, times, accelerator))
    return found


def _quickest(
    size: KernelShape, *, accelerator: Accelerator, known: Calibration, launched: bool
) -> Estimate:
    """An engine sums small messages by a kernel of its own, large ones as the library does."""
    ways: list[KernelShape] = [size]
    if isinstance(size, Collective) and size.of == "all_reduce":
        ways.append(replace(size, library="engine"))
    times = [estimate(way, accelerator, known, cold=True, launched=launched) for way in ways]
    return min(times, key=lambda time: time.seconds)


def _merged(
    trace: Trace, work: Sequence[Sequence[KernelShape]]
) -> dict[tuple[int, int], tuple[Matmul, float]]:
    """Linear layers that read the same tensor, as one product and each one's share of it."""
    readers: dict[tuple[object, ...], list[tuple[int, int, Matmul]]] = {}
    for order, each in enumerate(work):
        inputs = trace.recorded.operators[order].inputs
        for place, size in enumerate(each):
            if isinstance(size, Matmul) and size.groups == 1 and inputs:
                # Where a scale's last block is not full makes no two matrices unlike.
                bits = None if size.weight_bits is None else round(size.weight_bits, 1)
                key = (inputs[0], size.m, size.k, size.dtype, bits)
                readers.setdefault(key, []).append((order, place, size))
    found = {}
    for alike in readers.values():
        columns = sum(size.n for _, _, size in alike)
        whole = replace(alike[0][2], n=columns)
        for order, place, size in alike:
            found[order, place] = (whole, size.n / columns)
    return found


def _operator(
    work: Sequence[KernelShape],
    each: Sequence[Estimate],
    accelerator: Accelerator,
    waits: float = 0.0,
    least: float = 0.0,
) -> OperatorTime:
    """Kernels one after the other; the host adds `waits`, and needs `least` in all."""
    busy = math.fsum(time.seconds for time in each)
    seconds = max(busy + waits, least)
    low = max(math.fsum(time.low for time in each) + waits, least)
    high = max(math.fsum(time.high for time in each) + waits, least)
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
        longest[1].kind if longest else None,
        *(seconds, low, high, binds, len(work), flops, moved),
        flops / peak if peak else 0.0,
        min(moved / bandwidth, 1.0) if bandwidth else 0.0,  # a cache may be faster
    )


def _part(time: Estimate, share: float) -> Estimate:
    return Estimate(time.seconds * share, time.low * share, time.high * share, time.binds)


def _views(trace: Trace) -> list[int]:
    views = [0] * len(trace.recorded.operators)
    for kernel in trace.recorded.kernels:
        if kernel.is_view and kernel.operator is not None:
            views[kernel.operator] += 1
    return views
