"""From measured kernels of one class on one device to constants, a surface and their bands.

Robust least squares on log(seconds), then kriging of what is left over; every choice is made, and
every band earned, by cross-validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim_magic.analyses.time.roofline import REGIMES, Terms, place_of, seconds_of, terms_of
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band, Constants, Fitted, Sample, Surface

Array = NDArray[np.float64]

START = Constants(5e-6, 1.3, 1.2, 2.0, 1e-6, 0.5, 1.0, 0.0)
# What a tile's fixed work may be worth, and how much of a cache a benchmark may leave to each of
# the copies that it takes in turn: the best of these are kept.
TILES = (0.0, 20.0)
CACHED = (1.0, 1 / 2, 1 / 6)
FOLDS = 5
MOST_CENTRES = 300
_TOLERANCE = 0.02  # residuals below it count as squares, above it as magnitudes
_PULL = 0.05  # how hard a constant that the samples leave open is held at its start
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
    """Constants, surface and bands of one class of kernels on one device.

    `start` is where the search begins, and where a constant stays that the samples leave open.
    """
    constants, surface = _best(samples, accelerator, start)
    far, near = (np.concatenate(logs) for logs in _left_out(samples, accelerator, start))
    if np.abs(near).mean() > np.abs(far).mean():
        near, surface = far, Surface(surface.scales, (), ())
    return Fitted(
        constants,
        _rounded(surface),
        band_of(near),
        band_of(far),
        len(samples),
        tuple(sources),
    )


def _left_out(
    samples: Sequence[Sample], accelerator: Accelerator, start: Constants
) -> tuple[list[Array], list[Array]]:
    """log(measured ÷ predicted) of each fold by the others: constants alone, and with surface."""
    far, near = [], []
    for train, test in folds(len(samples)):
        constants, surface = _best([samples[place] for place in train], accelerator, start)
        held = [samples[place] for place in test]
        far.append(_left_over(held, accelerator, constants))
        near.append(far[-1] - _predicted(surface, _places(held, accelerator, constants)))
    return far, near


def folds(number: int) -> list[tuple[list[int], list[int]]]:
    """Train and test places of each fold; shuffled the same way each time."""
    order = np.random.default_rng(0).permutation(number)
    parts = [part.tolist() for part in np.array_split(order, min(FOLDS, number)) if len(part)]
    return [
        ([place for other in parts if other is not part for place in other], part) for part in parts
    ]


def band_of(logs: Array) -> Band:
    """The factors between which the nominal share of measured ÷ predicted lies."""
    edge = (1 - NOMINAL) / 2
    low, high = np.quantile(logs, [edge, 1 - edge])
    return Band(round(float(np.exp(min(low, 0.0))), 4), round(float(np.exp(max(high, 0.0))), 4))


def _best(
    samples: Sequence[Sample], accelerator: Accelerator, start: Constants
) -> tuple[Constants, Surface]:
    """The constants whose tile leaves the least over, and the surface of what they leave."""
    tiles = TILES if samples[0].size.kind.startswith("matmul") else (0.0,)
    found = [
        _constants(samples, accelerator, replace(start, tile=tile, cached=round(cached, 3)))
        for tile, cached in product(tiles, CACHED)
    ]
    left = [_left_over(samples, accelerator, each) for each in found]
    best = min(range(len(found)), key=lambda n: float(np.abs(left[n]).mean()))
    places = _places(samples, accelerator, found[best])
    family = samples[0].size.kind.split()[0]
    return found[best], _surface(places, left[best], np.array(_SCALES[family]))


def _terms(samples: Sequence[Sample], accelerator: Accelerator, constants: Constants) -> Any:
    """The terms of all samples as one, of arrays."""
    tile, cached = constants.tile, constants.cached
    each = [terms_of(sample.size, accelerator, tile, cached) for sample in samples]
    return Terms(
        *(
            np.array([getattr(one, name) for one in each])  # type: ignore[arg-type]
            for name in ("compute_s", "fresh_s", "resident_s", "items", "wave")
        )
    )


def _places(samples: Sequence[Sample], accelerator: Accelerator, constants: Constants) -> Array:
    waves = _terms(samples, accelerator, constants).wave
    return np.array(
        [place_of(s.size, wave, s.regime) for s, wave in zip(samples, waves, strict=True)]
    )


def _left_over(samples: Sequence[Sample], accelerator: Accelerator, constants: Constants) -> Array:
    """log(measured ÷ predicted by the constants alone)."""
    terms = _terms(samples, accelerator, constants)
    added = np.array([constants.regimes_s.get(sample.regime, 0.0) for sample in samples])
    measured = np.array([sample.seconds for sample in samples])
    return np.asarray(np.log(measured / (seconds_of(constants, terms) + added)))


def _constants(samples: Sequence[Sample], accelerator: Accelerator, start: Constants) -> Constants:
    """The constants that leave least over: Levenberg–Marquardt on their logarithms.

    Weighted so that it comes near the least sum of magnitudes: a few odd kernels shall not bend
    the rest.
    """
    terms = _terms(samples, accelerator, start)
    measured = np.log([sample.seconds for sample in samples])
    regimes = sorted({sample.regime for sample in samples}, key=REGIMES.index)[1:]
    started = {name: np.array([s.regime == name for s in samples], float) for name in regimes}

    def constants(theta: Array) -> Constants:
        # Sharpness below 1 would make overlapping slower than taking turns; heat is a share.
        launch, compute, memory, sharp, item, hot = np.exp(theta[:6])
        return Constants(
            *(launch, compute, memory, 1 + sharp, item, hot / (1 + hot)),
            *(start.cached, start.tile),
            dict(zip(regimes, np.exp(theta[6:]), strict=True)),
        )

    def predicted(theta: Array) -> Array:
        found = constants(theta)
        added = sum((found.regimes_s[name] * started[name] for name in regimes), np.zeros(1))
        return np.asarray(np.log(seconds_of(found, terms) + added))

    hot = start.hot / (1 - start.hot)
    given = (start.launch_s, start.compute, start.memory, start.sharpness - 1, start.item_s, hot)
    added = [start.regimes_s.get(name, 5e-6) for name in regimes]
    found = constants(_least(predicted, measured, np.log([*given, *added])))
    return replace(
        found,
        regimes_s={name: _short(seconds) for name, seconds in found.regimes_s.items()},
        **{name: _short(getattr(found, name)) for name in Constants.__slots__[:7]},
    )


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _least(predicted: Callable[[Array], Array], measured: Array, start: Array) -> Array:
    theta, damping, step = start, 1e-2, 1e-4

    def loss(theta: Array) -> float:
        left = np.abs(measured - predicted(theta))
        return float(left.sum() + _PULL * ((theta - start) ** 2).sum())

    best = loss(theta)
    for _ in range(40):
        here = predicted(theta)
        left = measured - here
        slopes = np.stack(
            [(predicted(theta + step * unit) - here) / step for unit in np.eye(len(theta))], 1
        )
        weighted = slopes / np.maximum(np.abs(left), _TOLERANCE)[:, None]
        curvature = weighted.T @ slopes + 2 * _PULL * np.eye(len(theta))
        downhill = weighted.T @ left - 2 * _PULL * (theta - start)
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
    """Kriging with the stretch and the noise whose leave-one-out errors are the least."""
    best = (np.inf, _STRETCHES[0], _NOISES[0])
    some = np.random.default_rng(0).permutation(len(places))[:MOST_CENTRES]
    for stretch in _STRETCHES:
        alike = _matern(places[some], places[some], scales * stretch)
        for noise in _NOISES:
            inverse = np.linalg.inv(alike + noise * np.eye(len(some)))
            error = inverse @ left[some] / np.diag(inverse)
            score = float(np.abs(error).mean())
            best = min(best, (score, stretch, noise))
    _, stretch, noise = best
    scales = scales * stretch
    across = _matern(places, places[some], scales)
    alike = _matern(places[some], places[some], scales)
    weights = np.linalg.solve(
        across.T @ across + noise * alike + 1e-8 * np.eye(len(some)), across.T @ left
    )
    return Surface(tuple(scales.tolist()), tuple(map(tuple, places[some])), tuple(weights))


def _rounded(surface: Surface) -> Surface:
    """Three decimals of a power of two are a thousandth: less than any clock's jitter."""
    return Surface(
        tuple(round(scale, 3) for scale in surface.scales),
        tuple(tuple(round(float(x), 3) for x in place) for place in surface.places),
        tuple(round(float(weight), 4) for weight in surface.weights),
    )


def _predicted(surface: Surface, places: Array) -> Array:
    if not surface.places:
        return np.zeros(len(places))
    alike = _matern(places, np.array(surface.places), np.array(surface.scales))
    return np.asarray(alike @ np.array(surface.weights))


def _matern(one: Array, other: Array, scales: Array) -> Array:
    apart = (one[:, None] - other[None]) / scales
    distance = np.sqrt(3 * (apart**2).sum(-1))
    return np.asarray((1 + distance) * np.exp(-distance))
