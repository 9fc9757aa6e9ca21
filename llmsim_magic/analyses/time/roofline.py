"""How long a kernel takes on a device: a roofline with the shares that measurements left of it.

    seconds = launch + item · items + ((compute · C)^s + (memory · M)^s)^(1/s),  corrected by exp(r)

C is the work at the datasheet's dense peak, whole waves of whole tiles counted; M the least bytes
at full bandwidth; s how well the two overlap; r what measurements near by left over, fading to
nothing far from them. The constants are `benchmarks/calibrate.py`'s, fitted to measurements.
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
)
from llmsim_magic.records.hardware.kernel_shapes import (
    Attention,
    Collective,
    Coordinates,
    KernelShape,
    Matmul,
)

Binds = Literal["compute", "memory", "launch", "interconnect"]

# Rows × columns of a result that libraries' kernels compute at a time, per compute unit.
_TILES = ((256, 128), (128, 256), (128, 128), (64, 256), (128, 64), (64, 128), (64, 64), (16, 64))
REGIMES: tuple[Regime, ...] = ("graph", "events", "eager")
_MOST_WAVE = 3.0  # in powers of two: fewer tiles than an eighth of the units are split otherwise
_CACHE_EDGE = 16  # how sharply a working set falls out of a cache as it outgrows it


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, the band in which nine of ten measurements would lie, and what binds."""

    seconds: float
    low: float
    high: float
    binds: Binds


@dataclass(frozen=True, slots=True)
class Terms:
    """A kernel's work in seconds at a device's full figures.

    `items` are the sequences of attention that fall to one compute unit, or the other ranks.
    `fresh_s` and `resident_s` are memory's: what comes from it, and what a cache may still hold.
    `wave` says by how many powers of two whole waves of tiles exceed the tiles.
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
    """Seconds of one kernel with the band that its class earned on measurements.

    `cold`: its weights, or keys and values, come from memory however small they are, as in a
    model; a benchmark that repeats one kernel finds them in the cache. Not `launched`: it goes on
    within the kernel before it. A device that was never measured takes as long as its nearest
    relatives would with its figures.

    Raises `CannotPredict` for a figure that the catalogue lacks, `InvalidValue` for a dtype that
    the device does.
    """
    devices, kind = _measured(size.kind, accelerator, calibration)
    known = devices == [accelerator.name]
    logs = []
    for name in devices:
        fitted = _started(calibration.fits[kind], name, regime)
        here = accelerator if known else _as(accelerator, name, calibration.unseen[kind].by_units)
        terms = terms_of(size, here, fitted.constants.tile, fitted.constants.cached, cold=cold)
        rest, reach = residual(fitted.surface, place_of(size, terms.wave, regime))
        started = fitted.constants.launch_s if not launched else 0.0
        logs.append(math.log(seconds_of(fitted.constants, terms, regime) - started) + rest)
    seconds = math.exp(sum(logs) / len(logs))
    band = calibration.unseen[kind].band
    if not (known or _one_vendor(accelerator, devices)):
        band = DEFAULT_BAND
    elif known and kind == size.kind:
        band = interpolate_band(fitted.near, fitted.far, reach)
    binds = _binds(fitted.constants, terms, regime, isinstance(size, Collective))
    return Estimate(seconds, seconds * band.low, seconds * band.high, binds)


def seconds_of(constants: Constants, terms: Terms, regime: Regime = "graph") -> float:
    """The roofline alone; works on arrays of numpy as on numbers."""
    started = constants.launch_s + constants.regimes_s.get(regime, 0.0)
    compute, memory = _bounds(constants, terms)
    sharpness = constants.sharpness
    worked: float = (compute**sharpness + memory**sharpness) ** (1 / sharpness)
    return started + constants.item_s * terms.items + worked


def _bounds(constants: Constants, terms: Terms) -> tuple[float, float]:
    moved = terms.fresh_s + constants.hot * terms.resident_s
    return constants.compute * terms.compute_s, constants.memory * moved


def place_of(size: KernelShape, wave: float, regime: Regime) -> Coordinates:
    """Where a kernel stands among others of its class, tiles and start included."""
    return (*size.place, wave, float(REGIMES.index(regime)))


def residual(surface: Surface, place: Coordinates) -> tuple[float, float]:
    """What measurements near `place` left over, and how near the nearest is: 1 here, 0 far off.

    A sum of Matérn-3/2 functions of the distance, as in kriging.
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
    return (1 + math.sqrt(3) * distance) * math.exp(-math.sqrt(3) * distance)


def terms_of(
    size: KernelShape, accelerator: Accelerator, tile: float, cached: float, *, cold: bool = False
) -> Terms:
    """A kernel's work at a device's full figures."""
    if isinstance(size, Collective):
        link = _known(accelerator, "interconnect_bytes_per_s", accelerator.interconnect_bytes_per_s)
        return Terms(0.0, size.bytes / link, 0.0, size.ranks - 1, 0.0)
    bandwidth = _known(accelerator, "bandwidth_bytes_per_s", accelerator.bandwidth_bytes_per_s)
    reused = size.bytes - size.weight_bytes if cold else size.bytes
    held = reused * _hit(reused, cached * (accelerator.llc_bytes or 0))
    memory = (size.bytes - held) / bandwidth, held / bandwidth
    if isinstance(size, Matmul):
        compute, wave = _matmul(size, accelerator, tile)
        return Terms(compute, *memory, 0.0, wave)
    if isinstance(size, Attention):
        compute = size.flops / accelerator.peak(size.dtype)
        tiles = size.batch * size.heads * math.ceil(size.queries / 128)
        wave = 0.0 if size.queries == 1 else _wave(tiles, accelerator.compute_units)
        return Terms(compute, *memory, size.batch / (accelerator.compute_units or 1), wave)
    return Terms(0.0, *memory, 0.0, 0.0)


def _matmul(size: Matmul, accelerator: Accelerator, tile: float) -> tuple[float, float]:
    """Seconds at peak, of whole waves of the tiles that suit best, and what the waves waste."""
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
    return min(math.log2(math.ceil(tiles / units) * units / tiles), _MOST_WAVE)


def _hit(nbytes: float, cache: float) -> float:
    """The share of a working set that a cache still holds when it comes round again."""
    return 1 / (1 + (nbytes / cache) ** _CACHE_EDGE) if cache else 0.0


def _binds(constants: Constants, terms: Terms, regime: Regime, sends: bool) -> Binds:
    compute, memory = _bounds(constants, terms)
    launch = seconds_of(constants, terms, regime) - max(compute, memory)
    if launch > max(compute, memory):
        return "launch"
    if sends:
        return "interconnect"
    return "compute" if compute > memory else "memory"


def _measured(
    kind: str, accelerator: Accelerator, calibration: Calibration
) -> tuple[list[str], str]:
    """The devices whose fits of which kind tell: its own, or those of its nearest relatives.

    A kind that nobody measured is taken as the first of its family: 32-bit matmuls as 16-bit.
    """
    family = [each for each in calibration.fits if _family(each) == _family(kind)]
    if not family:
        raise CannotPredict(kind, accelerator.name, "nothing of its kind was measured")
    own = [each for each in (kind, *family) if accelerator.name in calibration.fits.get(each, ())]
    if own and (own[0] == kind or kind not in calibration.fits):
        return [accelerator.name], own[0]
    chosen = kind if kind in calibration.fits else family[0]
    return relatives(accelerator, calibration.fits[chosen]), chosen


def _family(kind: str) -> str:
    return kind.partition(" ")[0]


def _started(fits: Mapping[str, Fitted], name: str, regime: Regime) -> Fitted:
    """A device's fit; where its kernels were never started so, others say what that adds."""
    fitted = fits[name]
    others = [
        f.constants.regimes_s[regime] for f in fits.values() if regime in f.constants.regimes_s
    ]
    if regime in fitted.constants.regimes_s or regime == "graph" or not others:
        return fitted
    added = fitted.constants.regimes_s | {regime: sum(others) / len(others)}
    return replace(fitted, constants=replace(fitted.constants, regimes_s=added))


def _as(accelerator: Accelerator, relative: str, by_units: float) -> Accelerator:
    """The device with its memory as fast as its relative's would be in its place."""
    other = entries().get(relative)
    units, bandwidth = accelerator.compute_units, accelerator.bandwidth_bytes_per_s
    if other is None or not (units and other.compute_units):
        return accelerator
    if not (bandwidth and other.bandwidth_bytes_per_s):
        return accelerator
    faster = (bandwidth / other.bandwidth_bytes_per_s) ** (1 - by_units)
    wider = (units / other.compute_units) ** by_units
    return replace(accelerator, bandwidth_bytes_per_s=other.bandwidth_bytes_per_s * faster * wider)


def relatives(accelerator: Accelerator, measured: Iterable[str]) -> list[str]:
    """The nearest of the devices measured: of one architecture, else one vendor, else one kind."""

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


def _one_vendor(accelerator: Accelerator, devices: Iterable[str]) -> bool:
    """Whether relatives are near enough for the band that devices of one vendor earned."""
    others = [entries().get(name) for name in devices]
    alike = [(accelerator.vendor, accelerator.kind)]
    return all(other and (other.vendor, other.kind) in alike for other in others)


def _known(accelerator: Accelerator, name: str, value: float | None) -> float:
    if value is None:
        raise CannotPredict("time", accelerator.name, f"the catalogue has no {name} for it")
    return value
