"""Points and roofs of the roofline plot."""

from dataclasses import dataclass

from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline import Binds
from llmsim_magic.records.hardware.accelerator import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An operator in a roofline plot: its FLOPs per byte and its predicted FLOP/s.

    `low` and `high` are the FLOP/s at the ends of its band; `order` is the operator's.
    """

    order: int
    intensity: float
    flops_per_s: float
    low: float
    high: float
    binds: Binds


@dataclass(frozen=True, slots=True)
class Roof:
    """The roof of a device: bandwidth below `ridge` FLOPs per byte, peak FLOP/s above."""

    dtype: str
    peak_flops: float
    bandwidth_bytes_per_s: float

    @property
    def ridge(self) -> float:
        return self.peak_flops / self.bandwidth_bytes_per_s


def points(time: PassTime) -> tuple[Point, ...]:
    """A point for every operator that has FLOPs, in execution order."""
    return tuple(
        Point(
            order=order,
            intensity=operator.flops / operator.bytes,
            flops_per_s=operator.flops / operator.seconds,
            low=operator.flops / operator.high,
            high=operator.flops / operator.low,
            binds=operator.binds,
        )
        for order, operator in enumerate(time.operators)
        if operator.flops and operator.bytes and operator.seconds
    )


def roofs(accelerator: Accelerator) -> tuple[Roof, ...]:
    """One roof per dtype a device computes in; empty if its bandwidth is unknown."""
    bandwidth = accelerator.bandwidth_bytes_per_s
    if not bandwidth:
        return ()
    return tuple(Roof(name, peak, bandwidth) for name, peak in accelerator.peak_flops.items())
