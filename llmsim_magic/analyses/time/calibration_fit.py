"""Fits constants, a residual surface and bands to measured kernels of one class on one device.

Robust least squares on log(seconds), then kriging of the residuals. Cross-validation selects
hyper-parameters and yields the bands.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim_magic.analyses.time.roofline import (
    REGIMES,
    coordinates_of,
    roofline_seconds,
)
from llmsim_magic.analyses.time.roofline_terms import Terms, roofline_terms
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band, Constants, Fitted, Sample, Surface

Array = NDArray[np.float64]

START = Constants(
    launch_s=5e-6,
    compute=1.3,
    memory=1.2,
    unit=4.0,
    sharpness=2.0,
    item_s=1e-6,
    hot=0.5,
    cached=1.0,
    tile=0.0,
)
# What a tile's fixed work may be worth, and how much of a cache a benchmark may leave to each of
# the copies that it takes in turn: the best of these are kept.
TILES = (0.0, 20.0)
CACHED = (1.0, 1 / 2, 1 / 6)
_STARTED_S = {"events": 2e-6, "eager": 2e-5}  # what a host adds, before anything is fitted
FOLDS = 5
MAX_CENTRES = 300
_TOLERANCE = 0.02  # residuals below it count as squares, above it as magnitudes
_PRIOR_WEIGHT = 0.05  # prior weight that holds undetermined constants at their start
# What tensor cores and memory lose is much the same everywhere: for each sample, the weight with
# which they stay at their start, so that what is slower is laid on the compute units if it can be.
_SHARES_WEIGHT = 0.02
# Over how many powers of two each coordinate of a place varies as much as the others do, by the
# family of a class; the last two are the waves' and the regime's. Cross-validation stretches or
# shrinks all of them.
_SCALES = {
    "matmul": (2.0, 4.0, 4.0, 1.0, 1.0),
    "attention": (3.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.0),
    "stream": (2.0, 4.0, 1.0, 1.0),
    "collective": (2.0, 2.0, 1.0, 1.0),
}
_STRETCHES = (0.7, 1.0, 1.6, 2.5)
_NOISES = (0.02, 0.1, 0.4, 2.0)
NOMINAL = 0.90


def fit(
    samples: Sequence[Sample],
    accelerator: Accelerator,
    sources: Sequence[str] = (),
    start: Constants = START,
) -> Fitted:
    """Fit one class of kernels on one device.

    Args:
        samples: Measured kernels of the class.
        accelerator: The device.
        sources: Where the samples come from.
        start: Initial constants, kept where the samples do not determine them.
    """
    constants, surface = _best(samples, accelerator, start)
    far, near = (np.concatenate(logs) for logs in _cross_validate(samples, accelerator, start))
    if np.abs(near).mean() > np.abs(far).mean():
        near, surface = far, Surface(surface.scales, (), ())
    return Fitted(
        constants=constants,
        surface=_rounded(surface),
        near=band_of(near),
        far=band_of(far),
        samples=len(samples),
        sources=tuple(sources),
    )


def _cross_validate(
    samples: Sequence[Sample], accelerator: Accelerator, start: Constants
) -> tuple[list[Array], list[Array]]:
    """Cross-validated log(measured ÷ predicted) per fold, without and with the surface."""
    far, near = [], []
    for train, test in folds(len(samples)):
        constants, surface = _best([samples[place] for place in train], accelerator, start)
        held = [samples[place] for place in test]
        far.append(_log_residuals(held, accelerator, constants))
        near.append(far[-1] - _predicted(surface, _places(held, accelerator, constants)))
    return far, near


def folds(number: int) -> list[tuple[list[int], list[int]]]:
    """Train and test indices of each fold, shuffled with a fixed seed."""
    order = np.random.default_rng(0).permutation(number)
    parts = [part.tolist() for part in np.array_split(order, min(FOLDS, number)) if len(part)]
    return [
        ([place for other in parts if other is not part for place in other], part) for part in parts
    ]


def band_of(logs: Array) -> Band:
    """The factors that contain the nominal share of measured ÷ predicted."""
    edge = (1 - NOMINAL) / 2
    low, high = np.quantile(logs, [edge, 1 - edge])
    return Band(round(float(np.exp(min(low, 0.0))), 4), round(float(np.exp(max(high, 0.0))), 4))


def _best(
    samples: Sequence[Sample], accelerator: Accelerator, start: Constants
) -> tuple[Constants, Surface]:
    """The constants with the smallest residuals over all tiles, and their residual surface."""
    tiles = TILES if samples[0].size.kind.startswith("matmul") else (0.0,)
    found = [
        _constants(samples, accelerator, replace(start, tile=tile, cached=round(cached, 3)))
        for tile, cached in product(tiles, CACHED)
    ]
    left = [_log_residuals(samples, accelerator, each) for each in found]
    best = min(range(len(found)), key=lambda n: float(np.abs(left[n]).mean()))
    places = _places(samples, accelerator, found[best])
    family = samples[0].size.kind.split()[0]
    return found[best], _surface(places, left[best], np.array(_SCALES[family]))


def _terms(samples: Sequence[Sample], accelerator: Accelerator, constants: Constants) -> Any:
    """The terms of all samples, as one `Terms` of arrays."""
    tile, cached = constants.tile, constants.cached
    each = [roofline_terms(sample.size, accelerator, tile, cached) for sample in samples]
    columns: dict[str, Any] = {
        name: np.array([getattr(one, name) for one in each]) for name in Terms.__slots__
    }
    return Terms(**columns)


def _places(samples: Sequence[Sample], accelerator: Accelerator, constants: Constants) -> Array:
    waves = _terms(samples, accelerator, constants).wave
    return np.array(
        [coordinates_of(s.size, wave, s.regime) for s, wave in zip(samples, waves, strict=True)]
    )


def _log_residuals(
    samples: Sequence[Sample], accelerator: Accelerator, constants: Constants
) -> Array:
    """log(measured ÷ predicted by the constants alone)."""
    terms = _terms(samples, accelerator, constants)
    added = np.array([constants.regimes_s.get(sample.regime, 0.0) for sample in samples])
    measured = np.array([sample.seconds for sample in samples])
    return np.asarray(np.log(measured / (roofline_seconds(constants, terms) + added)))


def _constants(samples: Sequence[Sample], accelerator: Accelerator, start: Constants) -> Constants:
    """The constants with the smallest residuals, by Levenberg–Marquardt on their logarithms.

    Iterative weights approximate least absolute deviations, so that outliers have little effect.
    """
    terms = _terms(samples, accelerator, start)
    measured = np.log([sample.seconds for sample in samples])
    regimes = sorted({sample.regime for sample in samples}, key=REGIMES.index)
    # The quickest way to start has no overhead, but for a GPU that was only started eagerly.
    if regimes[0] != "eager" or accelerator.kind != "gpu":
        regimes = regimes[1:]
    started = {name: np.array([s.regime == name for s in samples], float) for name in regimes}

    def constants(theta: Array) -> Constants:
        # Sharpness below 1 would make overlapping slower than taking turns; heat is a share.
        launch, compute, memory, unit, sharp, item, hot = np.exp(theta[:7])
        return Constants(
            launch_s=launch,
            compute=compute,
            memory=memory,
            unit=unit,
            sharpness=1 + sharp,
            item_s=item,
            hot=hot / (1 + hot),
            cached=start.cached,
            tile=start.tile,
            regimes_s=dict(zip(regimes, np.exp(theta[7:]), strict=True)),
        )

    def predicted(theta: Array) -> Array:
        found = constants(theta)
        added = sum((found.regimes_s[name] * started[name] for name in regimes), np.zeros(1))
        return np.asarray(np.log(roofline_seconds(found, terms) + added))

    hot = start.hot / (1 - start.hot)
    shares = (start.compute, start.memory, start.unit)
    given = (start.launch_s, *shares, start.sharpness - 1, start.item_s, hot)
    added = [start.regimes_s.get(name, _STARTED_S[name]) for name in regimes]
    prior = np.full(len(given) + len(added), _PRIOR_WEIGHT)
    prior[1:3] += _SHARES_WEIGHT * len(samples)
    found = constants(_levenberg_marquardt(predicted, measured, np.log([*given, *added]), prior))
    return replace(
        found,
        regimes_s={name: _round_significant(seconds) for name, seconds in found.regimes_s.items()},
        **{name: _round_significant(getattr(found, name)) for name in Constants.__slots__[:8]},
    )


def _round_significant(number: float) -> float:
    return float(f"{number:.4g}")


def _levenberg_marquardt(
    predicted: Callable[[Array], Array], measured: Array, start: Array, prior: Array
) -> Array:
    theta, damping, step = start, 1e-2, 1e-4

    def loss(theta: Array) -> float:
        left = np.abs(measured - predicted(theta))
        return float(left.sum() + (prior * (theta - start) ** 2).sum())

    best = loss(theta)
    for _ in range(40):
        here = predicted(theta)
        left = measured - here
        slopes = np.stack(
            [(predicted(theta + step * unit) - here) / step for unit in np.eye(len(theta))], 1
        )
        weighted = slopes / np.maximum(np.abs(left), _TOLERANCE)[:, None]
        curvature = weighted.T @ slopes + 2 * np.diag(prior)
        downhill = weighted.T @ left - 2 * prior * (theta - start)
        curvature += damping * np.diag(np.diag(curvature))
        trial = theta + np.clip(np.linalg.solve(curvature, downhill), -1, 1)
        if (tried := loss(trial)) < best:
            theta, best, damping = trial, tried, damping / 2
        else:
            damping *= 4
        if damping > 1e6:
            break
    return theta


def _surface(places: Array, left: Array, scales: Array) -> Surface:
    """Kriging with the length scale and noise that minimise the leave-one-out error."""
    best = (np.inf, _STRETCHES[0], _NOISES[0])
    centres = np.random.default_rng(0).permutation(len(places))[:MAX_CENTRES]
    for stretch in _STRETCHES:
        covariance = _matern(places[centres], places[centres], scales * stretch)
        for noise in _NOISES:
            inverse = np.linalg.inv(covariance + noise * np.eye(len(centres)))
            error = inverse @ left[centres] / np.diag(inverse)
            score = float(np.abs(error).mean())
            best = min(best, (score, stretch, noise))
    _, stretch, noise = best
    scales = scales * stretch
    cross_covariance = _matern(places, places[centres], scales)
    covariance = _matern(places[centres], places[centres], scales)
    weights = np.linalg.solve(
        cross_covariance.T @ cross_covariance + noise * covariance + 1e-8 * np.eye(len(centres)),
        cross_covariance.T @ left,
    )
    return Surface(tuple(scales.tolist()), tuple(map(tuple, places[centres])), tuple(weights))


def _rounded(surface: Surface) -> Surface:
    """Round log2 coordinates to three decimals, which is below timing jitter."""
    return Surface(
        tuple(round(scale, 3) for scale in surface.scales),
        tuple(tuple(round(float(x), 3) for x in place) for place in surface.places),
        tuple(round(float(weight), 4) for weight in surface.weights),
    )


def _predicted(surface: Surface, places: Array) -> Array:
    if not surface.places:
        return np.zeros(len(places))
    covariance = _matern(places, np.array(surface.places), np.array(surface.scales))
    return np.asarray(covariance @ np.array(surface.weights))


def _matern(one: Array, other: Array, scales: Array) -> Array:
    differences = (one[:, None] - other[None]) / scales
    distance = np.sqrt(3 * (differences**2).sum(-1))
    return np.asarray((1 + distance) * np.exp(-distance))
