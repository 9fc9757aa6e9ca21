"""Predicted time of a kernel on a device: a roofline fitted to measurements.

    seconds = launch + item · hops + (c^s + m^s + u^s)^(1/s),  corrected by exp(r)
    c, m, u = compute · C, memory · M, unit · U + item · items

C is the time of the FLOPs at the datasheet's dense peak, in whole waves of
tiles. M is the time of the minimum bytes at full bandwidth. U is the time in which the compute
units load and process those bytes, which goes with their number and clock. s is how well the three
overlap. r is the residual of nearby measurements, which fades to zero far from them.
`benchmarks/calibrate.py` fits the constants.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from llmsim_magic.analyses.time.band import DEFAULT_BAND, interpolate_band, widest_band
from llmsim_magic.analyses.time.roofline_terms import Terms, roofline_terms, softmax_overhead
from llmsim_magic.catalog.accelerators import entries
from llmsim_magic.records.errors import CannotPredict
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import (
    Band,
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
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Binds = Literal["compute", "memory", "launch", "interconnect"]

REGIMES: tuple[Regime, ...] = ("graph", "events", "eager")
# A class that nobody measured: whose compute constants it has, and whose others. A kernel over a
# cached latent multiplies blocks of query rows, as in prefill, and streams the cache, as in decode.
_COMPOSED = {"attention latent": ("attention prefill", "attention decode")}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds, the band of nine in ten measurements, and the bounding resource."""

    seconds: float
    low: float
    high: float
    binds: Binds


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
    if isinstance(size, Collective):
        accelerator = accelerator.among(size.joined)
    calibration = _with_composed_class(size.kind, calibration)
    found = _references(size.kind, accelerator, calibration, regime)
    logs = []
    for reference in found.fits:
        constants, surface = reference.fitted.constants, reference.fitted.surface
        terms = roofline_terms(size, accelerator, constants.tile, constants.cached, cold=cold)
        if reference.relative is not None:
            terms = _with_softmax_of(reference.relative, terms, size, accelerator)
        rest, reach = residual(surface, coordinates_of(size, terms.wave, regime))
        started = constants.launch_s if not launched else 0.0
        logs.append(math.log(roofline_seconds(constants, terms, regime) - started) + rest)
    seconds = math.exp(sum(logs) / len(logs))
    fitted = found.fits[-1].fitted
    band = found.band or interpolate_band(fitted.near, fitted.far, reach)
    binds = _binds(fitted.constants, terms, regime, isinstance(size, Collective))
    return Estimate(seconds, seconds * band.low, seconds * band.high, binds)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A fit to price a class of kernels by.

    `relative` is the measured device if its architecture differs from the one that is priced.
    """

    fitted: Fitted
    relative: Accelerator | None


@dataclass(frozen=True, slots=True)
class _References:
    """The fits of a device's own kernels, or of its relatives'.

    `band` is that of a prediction; None where it depends on how near the measured kernels are.
    """

    fits: tuple[_Reference, ...]
    band: Band | None


@lru_cache(maxsize=4096)
def _references(
    kind: str, accelerator: Accelerator, calibration: Calibration, regime: Regime
) -> _References:
    devices, own_kind = _reference_fits(kind, accelerator, calibration)
    is_own = devices == [accelerator.name]
    fits = []
    for name in devices:
        fitted = calibration.fits[own_kind][name]
        is_measured_so = is_own and regime in fitted.constants.regimes_s
        if regime != "graph" and not is_measured_so:
            fitted = _with_overhead(fitted, own_kind, accelerator.name, regime, calibration)
        fits.append(_Reference(fitted, None if is_own else _other_architecture(name, accelerator)))
    band: Band | None = None
    if not (is_own or _is_same_vendor(accelerator, devices)):
        band = DEFAULT_BAND
    elif not is_own or own_kind != kind:  # no better known than what it is predicted from
        relatives = [calibration.fits[own_kind][name].far for name in devices]
        band = widest_band([calibration.unseen[own_kind], *relatives])
    return _References(tuple(fits), band)


def _other_architecture(name: str, accelerator: Accelerator) -> Accelerator | None:
    """The measured device of a name, if it has another architecture than the one to price."""
    other = entries().get(name)
    return None if other is None or other.architecture == accelerator.architecture else other


@lru_cache(maxsize=64)
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
        unseen={**calibration.unseen, kind: DEFAULT_BAND},
    )


def roofline_seconds(constants: Constants, terms: Terms, regime: Regime = "graph") -> float:
    """The roofline time in seconds without residual; accepts numbers or NumPy arrays."""
    started = constants.launch_s + constants.regimes_s.get(regime, 0.0)
    sharpness = constants.sharpness
    worked: float = sum(each**sharpness for each in _bounds(constants, terms)) ** (1 / sharpness)
    return started + constants.item_s * terms.hops + worked


def _bounds(constants: Constants, terms: Terms) -> tuple[float, float, float]:
    """Seconds that products, memory, and the units' loading and handling would take alone."""
    moved = terms.fresh_s + constants.hot * terms.resident_s
    handled = constants.unit * terms.loaded_s + constants.item_s * terms.items
    return constants.compute * terms.compute_s, constants.memory * moved, handled


def coordinates_of(size: KernelShape, wave: float, regime: Regime) -> Coordinates:
    """The coordinates of a kernel within its class, including wave and regime."""
    return (*size.place, wave, float(REGIMES.index(regime)))


@lru_cache(maxsize=10_000)
def residual(surface: Surface, place: Coordinates) -> tuple[float, float]:
    """The log residual at `place`, and the proximity of the nearest measurement (1 near, 0 far).

    A sum of Matérn-3/2 kernels of the distance, as in kriging.
    """
    if not surface.places:
        return 0.0, 0.0
    import numpy as np

    places, weights, scales = _arrays(surface)
    distances = np.sqrt(3 * (((place - places) / scales) ** 2).sum(axis=1))
    near = (1 + distances) * np.exp(-distances)
    return float(weights @ near), float(near.max())


@lru_cache(maxsize=1024)
def _arrays(surface: Surface) -> tuple["Array", "Array", "Array"]:
    """Places `[number, coordinates]`, weights and scales of a surface."""
    import numpy as np  # takes as long as all else that a first answer without times needs

    return np.array(surface.places), np.array(surface.weights), np.array(surface.scales)


def _binds(constants: Constants, terms: Terms, regime: Regime, sends: bool) -> Binds:
    compute, *moving = _bounds(constants, terms)
    longest = max(compute, *moving)
    if roofline_seconds(constants, terms, regime) - longest > longest:
        return "launch"
    if sends:
        return "interconnect"
    return "compute" if compute == longest else "memory"


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
    measured = list(calibration.fits[chosen])
    if _family(kind) == "collective":
        measured = _alike_linked(accelerator, measured)
    return nearest_devices(accelerator, measured), chosen


def _alike_linked(accelerator: Accelerator, measured: list[str]) -> list[str]:
    """The devices with links of the same technology; all if fewer than two were measured.

    What a collective gets of a link is its protocol's affair. Over PCIe it is the machine's too, so
    that one machine tells little of another.
    """

    def technology(link: str | None) -> str:
        return (link or "").partition(" ")[0]

    known = entries()
    wanted = technology(accelerator.link)
    alike = [name for name in measured if name in known and technology(known[name].link) == wanted]
    return alike if len(alike) > 1 else measured


def _family(kind: str) -> str:
    return kind.partition(" ")[0]


def _with_overhead(
    fitted: Fitted, kind: str, host: str, regime: Regime, known: Calibration
) -> Fitted:
    """A fit with the overhead of a regime that its class was not measured in on this host.

    Starting a kernel eagerly is the host's work, whichever kernel it is: the mean over the classes
    that were measured on the host's device; else over the hosts of this class, if there are two;
    else over all classes and hosts.
    """

    def measured(fits: Iterable[Fitted]) -> list[float]:
        each = (fit.constants.regimes_s for fit in fits)
        return [regimes_s[regime] for regimes_s in each if regime in regimes_s]

    added = measured(known.fits[kind].values())
    if regime == "eager":
        every = known.fits.values()
        here = measured(fits[host] for fits in every if host in fits)
        if here or len(added) < 2:
            added = here or measured(fit for fits in every for fit in fits.values())
    if not added:
        return fitted
    regimes_s = fitted.constants.regimes_s | {regime: sum(added) / len(added)}
    return replace(fitted, constants=replace(fitted.constants, regimes_s=regimes_s))


def _with_softmax_of(
    relative: Accelerator, terms: Terms, size: KernelShape, accelerator: Accelerator
) -> Terms:
    """The terms with the softmax of a relative that has another architecture.

    Kernels are written for an architecture, to keep its tensor cores as busy as its other pipelines
    allow: what they reach carries over to another as a share of the peak.
    """
    if not isinstance(size, Attention):
        return terms
    ratio = softmax_overhead(size, relative) / softmax_overhead(size, accelerator)
    return replace(terms, compute_s=terms.compute_s * ratio)


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
