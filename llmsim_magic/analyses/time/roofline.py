"""Predicted time of a kernel on a device: a roofline fitted to measurements.

    seconds = launch + item · items + ((compute · C)^s + (memory · M)^s)^(1/s),  corrected by exp(r)

C is the time of the FLOPs at the datasheet's dense peak, in whole waves of tiles. M is the time of
the minimum bytes at full bandwidth. s is how well the two overlap. r is the residual of nearby
measurements, which fades to zero far from them. `benchmarks/calibrate.py` fits the constants.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llmsim_magic.analyses.time.band import DEFAULT_BAND, interpolate_band
from llmsim_magic.catalog.accelerators import entries
from llmsim_magic.records.errors import CannotPredict
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import (
    Calibration,
    Constants,
    Fitted,
    Regime,
    Surface,
    Transfer,
)
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    Coordinates,
    KernelShape,
    Matmul,
)

Binds = Literal["compute", "memory", "launch", "interconnect"]

# Tile sizes (rows × columns of the result) of library kernels, one tile per compute unit.
_TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64), (16, 64))
REGIMES: tuple[Regime, ...] = ("graph", "events", "eager")
_MAX_WAVE = (
    3.0  # log2; with fewer tiles than an eighth of the units, kernels split the sum (split-k)
)
# A class that nobody measured: whose compute constants it has, and whose others. A kernel over a
# cached latent multiplies blocks of query rows, as in prefill, and streams the cache, as in decode.
_COMPOSED = {"attention latent": ("attention prefill", "attention decode")}
_CACHE_STEEPNESS = 16  # how steeply cache hits fall once the working set exceeds the cache


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds, the band of nine in ten measurements, and the bounding resource."""

    seconds: float
    low: float
    high: float
    binds: Binds


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A kernel's work in seconds at a device's datasheet figures.

    `fresh_s` is the time of bytes read from memory, `resident_s` of bytes the cache may still hold.
    `items` are attention sequences per compute unit, or the other ranks of a collective. `wave` is
    log2 of the tiles in whole waves over the tiles needed.
    """

    compute_s: float
    fresh_s: float
    resident_s: float
    items: float
    wave: float


def estimate(
    size: KernelShape,
    accelerator: Accelerator,
    calibration: Calibration,
    *,
    regime: Regime = "graph",
    cold: bool = False,
    launched: bool = True,
) -> Estimate:
    """The predicted time of one kernel with its band.

    A device without measurements is predicted from the nearest measured devices, scaled by its
    datasheet figures.

    Args:
        size: The kernel's shape.
        accelerator: The device.
        calibration: Fitted constants by kernel class and device.
        regime: How the kernel is launched.
        cold: Whether weights, or keys and values, are read from memory as in a model, not from
            the cache as in a benchmark that repeats the kernel.
        launched: Whether the kernel has a launch of its own; False if it is fused with the one
            before it.

    Raises:
        CannotPredict: If the catalogue lacks a required figure.
        InvalidValue: If the device cannot compute in the kernel's dtype.
    """
    calibration = _with_composed_class(size.kind, calibration)
    devices, kind = _reference_fits(size.kind, accelerator, calibration)
    known = devices == [accelerator.name]
    logs = []
    for name in devices:
        fitted = _with_regime_overhead(calibration.fits[kind], name, regime)
        here = (
            accelerator
            if known
            else _scaled_to_relative(accelerator, name, calibration.unseen[kind].by_units)
        )
        terms = roofline_terms(
            size, here, fitted.constants.tile, fitted.constants.cached, cold=cold
        )
        rest, reach = residual(fitted.surface, coordinates_of(size, terms.wave, regime))
        started = fitted.constants.launch_s if not launched else 0.0
        logs.append(math.log(roofline_seconds(fitted.constants, terms, regime) - started) + rest)
    seconds = math.exp(sum(logs) / len(logs))
    band = calibration.unseen[kind].band
    if not (known or _is_same_vendor(accelerator, devices)):
        band = DEFAULT_BAND
    elif known and kind == size.kind:
        band = interpolate_band(fitted.near, fitted.far, reach)
    binds = _binds(fitted.constants, terms, regime, isinstance(size, Collective))
    return Estimate(seconds, seconds * band.low, seconds * band.high, binds)


def _with_composed_class(kind: str, calibration: Calibration) -> Calibration:
    """The calibration with fits for a class that is composed of two measured ones."""
    if kind in calibration.fits or kind not in _COMPOSED:
        return calibration
    compute, other = (calibration.fits.get(each, {}) for each in _COMPOSED[kind])
    fits = {
        name: replace(
            other[name],
            constants=replace(other[name].constants, compute=compute[name].constants.compute),
            surface=Surface((), (), ()),
            near=DEFAULT_BAND,
            far=DEFAULT_BAND,
        )
        for name in compute.keys() & other.keys()
    }
    if not fits:
        return calibration
    return replace(
        calibration,
        fits={**calibration.fits, kind: fits},
        unseen={**calibration.unseen, kind: Transfer(by_units=0.0, band=DEFAULT_BAND)},
    )


def roofline_seconds(constants: Constants, terms: Terms, regime: Regime = "graph") -> float:
    """The roofline time in seconds without residual; accepts numbers or NumPy arrays."""
    started = constants.launch_s + constants.regimes_s.get(regime, 0.0)
    compute, memory = _bounds(constants, terms)
    sharpness = constants.sharpness
    worked: float = (compute**sharpness + memory**sharpness) ** (1 / sharpness)
    return started + constants.item_s * terms.items + worked


def _bounds(constants: Constants, terms: Terms) -> tuple[float, float]:
    moved = terms.fresh_s + constants.hot * terms.resident_s
    return constants.compute * terms.compute_s, constants.memory * moved


def coordinates_of(size: KernelShape, wave: float, regime: Regime) -> Coordinates:
    """The coordinates of a kernel within its class, including wave and regime."""
    return (*size.place, wave, float(REGIMES.index(regime)))


def residual(surface: Surface, place: Coordinates) -> tuple[float, float]:
    """The log residual at `place`, and the proximity of the nearest measurement (1 near, 0 far).

    A sum of Matérn-3/2 kernels of the distance, as in kriging.
    """
    rest = reach = 0.0
    for known, weight in zip(surface.places, surface.weights, strict=True):
        squares = 0.0
        for a, b, scale in zip(place, known, surface.scales, strict=True):
            squares += ((a - b) / scale) ** 2
        near = matern(math.sqrt(squares))
        rest += weight * near
        reach = max(reach, near)
    return rest, reach


def matern(distance: float) -> float:
    """The Matérn-3/2 covariance at a scaled distance."""
    return (1 + math.sqrt(3) * distance) * math.exp(-math.sqrt(3) * distance)


def roofline_terms(
    size: KernelShape, accelerator: Accelerator, tile: float, cached: float, *, cold: bool = False
) -> Terms:
    """A kernel's work in seconds at a device's datasheet figures."""
    if isinstance(size, Collective):
        link = _require(
            accelerator, "interconnect_bytes_per_s", accelerator.interconnect_bytes_per_s
        )
        return Terms(
            compute_s=0.0, fresh_s=size.bytes / link, resident_s=0.0, items=size.ranks - 1, wave=0.0
        )
    bandwidth = _require(accelerator, "bandwidth_bytes_per_s", accelerator.bandwidth_bytes_per_s)
    reused = size.bytes - size.weight_bytes if cold else size.bytes
    held = reused * _cache_hit_share(reused, cached * (accelerator.llc_bytes or 0))
    fresh_s, resident_s = (size.bytes - held) / bandwidth, held / bandwidth
    if isinstance(size, Matmul):
        compute, wave = _matmul(size, accelerator, tile)
        return Terms(
            compute_s=compute, fresh_s=fresh_s, resident_s=resident_s, items=0.0, wave=wave
        )
    if isinstance(size, Attention):
        compute = size.flops / accelerator.peak(size.dtype)
        tiles = size.batch * size.heads * math.ceil(size.queries / 128)
        wave = 0.0 if size.queries == 1 else _wave(tiles, accelerator.compute_units)
        items = size.batch / (accelerator.compute_units or 1)
        return Terms(
            compute_s=compute, fresh_s=fresh_s, resident_s=resident_s, items=items, wave=wave
        )
    return Terms(compute_s=0.0, fresh_s=fresh_s, resident_s=resident_s, items=0.0, wave=0.0)


def _matmul(size: Matmul, accelerator: Accelerator, tile: float) -> tuple[float, float]:
    """Seconds at peak with the best tile size in whole waves, and the wave overhead."""
    peak = accelerator.peak(size.dtype)
    units = accelerator.compute_units
    if units is None or accelerator.kind != "gpu":
        return size.flops / peak, 0.0

    def seconds(rows: int, columns: int) -> float:
        tiles = size.groups * math.ceil(size.m / rows) * math.ceil(size.n / columns)
        whole = math.ceil(tiles / units) * units
        work = 2.0 * whole * rows * columns * size.k / peak
        return work * (1 + tile * (1 / rows + 1 / columns))

    tiles = size.groups * math.ceil(size.m / 128) * math.ceil(size.n / 128)
    return min(seconds(*each) for each in _TILES), _wave(tiles, units)


def _wave(tiles: int, units: int | None) -> float:
    if not units:
        return 0.0
    return min(math.log2(math.ceil(tiles / units) * units / tiles), _MAX_WAVE)


def _cache_hit_share(nbytes: float, cache: float) -> float:
    """The share of a working set that is still cached when it is read again."""
    return 1 / (1 + (nbytes / cache) ** _CACHE_STEEPNESS) if cache else 0.0


def _binds(constants: Constants, terms: Terms, regime: Regime, sends: bool) -> Binds:
    compute, memory = _bounds(constants, terms)
    launch = roofline_seconds(constants, terms, regime) - max(compute, memory)
    if launch > max(compute, memory):
        return "launch"
    if sends:
        return "interconnect"
    return "compute" if compute > memory else "memory"


def _reference_fits(
    kind: str, accelerator: Accelerator, calibration: Calibration
) -> tuple[list[str], str]:
    """The devices and kernel class whose fits to use: the device's own, or related devices'.

    A class without measurements uses the first class of its family: 32-bit matmuls use 16-bit.
    """
    family = [each for each in calibration.fits if _family(each) == _family(kind)]
    if not family:
        raise CannotPredict(kind, accelerator.name, "no kernel of its class was measured")
    own = [each for each in (kind, *family) if accelerator.name in calibration.fits.get(each, ())]
    if own and (own[0] == kind or kind not in calibration.fits):
        return [accelerator.name], own[0]
    chosen = kind if kind in calibration.fits else family[0]
    return nearest_devices(accelerator, calibration.fits[chosen]), chosen


def _family(kind: str) -> str:
    return kind.partition(" ")[0]


def _with_regime_overhead(fits: Mapping[str, Fitted], name: str, regime: Regime) -> Fitted:
    """A device's fit; a regime it was not measured in gets the mean overhead of other devices."""
    fitted = fits[name]
    others = [
        f.constants.regimes_s[regime] for f in fits.values() if regime in f.constants.regimes_s
    ]
    if regime in fitted.constants.regimes_s or regime == "graph" or not others:
        return fitted
    added = fitted.constants.regimes_s | {regime: sum(others) / len(others)}
    return replace(fitted, constants=replace(fitted.constants, regimes_s=added))


def _scaled_to_relative(accelerator: Accelerator, relative: str, by_units: float) -> Accelerator:
    """The device with the bandwidth of a related device, scaled by the datasheet figures."""
    other = entries().get(relative)
    units, bandwidth = accelerator.compute_units, accelerator.bandwidth_bytes_per_s
    if other is None or not (units and other.compute_units):
        return accelerator
    if not (bandwidth and other.bandwidth_bytes_per_s):
        return accelerator
    faster = (bandwidth / other.bandwidth_bytes_per_s) ** (1 - by_units)
    wider = (units / other.compute_units) ** by_units
    return replace(accelerator, bandwidth_bytes_per_s=other.bandwidth_bytes_per_s * faster * wider)


def nearest_devices(accelerator: Accelerator, measured: Iterable[str]) -> list[str]:
    """The nearest measured devices: same architecture, else same vendor, else same kind."""

    def distance(name: str) -> int:
        other = entries().get(name)
        if other is None or other.kind != accelerator.kind:
            return 3
        if other.architecture == accelerator.architecture:
            return 0
        return 1 if other.vendor == accelerator.vendor else 2

    distances = {name: distance(name) for name in measured}
    nearest = min(distances.values())
    return [name for name, each in distances.items() if each == nearest]


def _is_same_vendor(accelerator: Accelerator, devices: Iterable[str]) -> bool:
    """Whether all devices have the accelerator's vendor and kind, as the transfer band requires."""
    others = [entries().get(name) for name in devices]
    alike = [(accelerator.vendor, accelerator.kind)]
    return all(other and (other.vendor, other.kind) in alike for other in others)


def _require(accelerator: Accelerator, name: str, value: float | None) -> float:
    if value is None:
        raise CannotPredict("time", accelerator.name, f"the catalogue has no {name} for it")
    return value
