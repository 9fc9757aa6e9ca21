"""The low/high interval of a prediction, which holds nine of ten measurements."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from llmsim_magic.records.hardware.calibration import Band

DEFAULT_BAND = Band(1 / 3, 3.0)  # for kernels without measurements on a related device


class TimeInterval(Protocol):
    """A predicted time in seconds with the ends of its band."""

    @property
    def seconds(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def interpolate_band(near: Band, far: Band, proximity: float) -> Band:
    """The band at a distance from the measured kernels, interpolated on a log scale.

    Args:
        near: The band at a measured kernel.
        far: The band far from every measured kernel.
        proximity: 1 at a measured kernel, 0 far from all of them.
    """

    def interpolate(a: float, b: float) -> float:
        return math.exp(proximity * math.log(a) + (1 - proximity) * math.log(b))

    return Band(interpolate(near.low, far.low), interpolate(near.high, far.high))


def widest_band(bands: Sequence[Band]) -> Band:
    """The band that contains all of several."""
    return Band(min(band.low for band in bands), max(band.high for band in bands))


def pass_band(
    times: Sequence[tuple[TimeInterval, int]], passes: Mapping[str, Band], phase: str
) -> Band:
    """The band of a whole pass, as factors of its predicted time.

    Args:
        times: The predicted time of each distinct operator, and how often the pass runs it.
        passes: The band of measured end-to-end passes, by phase.
        phase: The phase of the pass.

    Returns:
        The wider of the operators' bands and the band of end-to-end measurements.
    """
    seconds = math.fsum(time.seconds * number for time, number in times) or 1.0
    low = math.fsum(time.low * number for time, number in times) / seconds
    high = math.fsum(time.high * number for time, number in times) / seconds
    measured = passes.get(phase, Band(1.0, 1.0))
    return Band(min(low, measured.low), max(high, measured.high))
