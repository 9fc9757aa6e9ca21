"""The predicted time of a pass: of each operator and in total, with its band."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from llmsim_magic.analyses.time.roofline import Binds, Estimate
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.execution import Execution

NO_TIME = Estimate(0.0, 0.0, 0.0, "launch")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """The predicted time of one operator in seconds, its band, and the resource that bounds it.

    `kind` is the class of the slowest kernel; None if no kernel runs. `of_peak` and `of_bandwidth`
    are shares of the device's peak FLOP/s and bandwidth. For a collective, bytes and bandwidth are
    those of the interconnect.
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
        """FLOPs per byte moved; None if no byte is moved."""
        return self.flops / self.bytes if self.bytes else None


@dataclass(frozen=True, kw_only=True)
class PassTime:
    """The predicted time of a pass; nine of ten measurements lie between `low` and `high`.

    `operators` are in execution order. `seen` is True if the device itself was measured, False if
    the prediction uses related devices.
    """

    accelerator: Accelerator
    execution: Execution
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
        """The share of the time that each resource bounds, largest first."""
        bound = _bound(self.operators)
        return {name: each / self.seconds for name, each in bound.items() if self.seconds}

    def of(self, orders: Iterable[int]) -> Estimate:
        """The total time of several operators, such as a layer, and what bounds most of it."""
        chosen = [self.operators[order] for order in orders]
        if not chosen:
            return NO_TIME
        return Estimate(
            math.fsum(operator.seconds for operator in chosen),
            math.fsum(operator.low for operator in chosen),
            math.fsum(operator.high for operator in chosen),
            next(iter(_bound(chosen))),
        )


def _bound(operators: Iterable[OperatorTime]) -> dict[Binds, float]:
    """The seconds that each resource bounds, largest first."""
    seconds: dict[Binds, float] = {}
    for operator in operators:
        seconds[operator.binds] = seconds.get(operator.binds, 0.0) + operator.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
