"""One prediction beside its measurement."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scored:
    """A prediction of a class on a device with its band; units cancel."""

    scored: str
    device: str
    measured: float
    predicted: float
    low: float
    high: float
