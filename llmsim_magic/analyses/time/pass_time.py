"""The predicted time of a pass: of each operator and in total, with its band."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.time.roofline import Binds, Estimate
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band
from llmsim_magic.records.hardware.execution import Execution
from llmsim_magic.records.trace.trace import Trace

Each = TypeVar("Each")
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

    `distinct` are the times that operators have, and `steps` has an index of them for each operator
    in execution order: replayed layers share theirs. `seen` is True if the device itself was
    measured, False if the prediction uses related devices.
    """

    accelerator: Accelerator
    execution: Execution
    distinct: tuple[OperatorTime, ...]
    steps: tuple[int, ...]
    band: Band
    seen: bool

    @cached_property
    def operators(self) -> tuple[OperatorTime, ...]:
        """The time of each operator in execution order."""
        return tuple(map(self.distinct.__getitem__, self.steps))

    @cached_property
    def _counted(self) -> tuple[tuple[OperatorTime, int], ...]:
        return counted(self.distinct, self.steps)

    @cached_property
    def seconds(self) -> float:
        return math.fsum(operator.seconds * number for operator, number in self._counted)

    @property
    def low(self) -> float:
        return self.seconds * self.band.low

    @property
    def high(self) -> float:
        return self.seconds * self.band.high

    @cached_property
    def bound(self) -> dict[str, float]:
        """The share of the time that each resource bounds, largest first."""
        bound = _bound(self._counted)
        return {name: each / self.seconds for name, each in bound.items() if self.seconds}

    def of(self, orders: Iterable[int]) -> Estimate:
        """The total time of several operators, such as a layer, and what bounds most of it."""
        chosen = counted(self.distinct, [self.steps[order] for order in orders])
        if not chosen:
            return NO_TIME
        return Estimate(
            math.fsum(operator.seconds * number for operator, number in chosen),
            math.fsum(operator.low * number for operator, number in chosen),
            math.fsum(operator.high * number for operator, number in chosen),
            next(iter(_bound(chosen))),
        )


def joined(passes: Sequence[PassTime]) -> PassTime:
    """The time of passes that follow one another on equal devices, such as pipeline stages."""
    first, *others = passes
    if not others:
        return first
    distinct, steps = [*first.distinct], [*first.steps]
    for each in others:
        steps += [len(distinct) + step for step in each.steps]
        distinct += each.distinct
    return replace(first, distinct=tuple(distinct), steps=tuple(steps))


def counted(distinct: Sequence[Each], steps: Sequence[int]) -> tuple[tuple[Each, int], ...]:
    """Each of several values and how often it occurs, in the order of the first occurrences."""
    return tuple([(distinct[place], number) for place, number in Counter(steps).items()])


@memoize
def recorded_orders(trace: Trace) -> tuple[int, ...]:
    """For each operator of the pass, the index of the recorded one."""
    return tuple([operator for operator, _ in trace.steps])


def _bound(operators: Iterable[tuple[OperatorTime, int]]) -> dict[Binds, float]:
    """The seconds that each resource bounds, largest first."""
    seconds: dict[Binds, float] = {}
    for operator, number in operators:
        seconds[operator.binds] = seconds.get(operator.binds, 0.0) + operator.seconds * number
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
