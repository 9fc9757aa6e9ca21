"""The peak of a training step: where it is, and what is allocated then."""

from dataclasses import dataclass

from llmsim_magic.analyses.allocations.step_allocations import Alive, Moment, step_allocations
from llmsim_magic.analyses.allocations.tensor_lifetimes import operator_name
from llmsim_magic.records.trace.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Bytes of a steady training step in blocks of the allocator, and the peak of the first one.

    Attributes:
        alive: What is allocated at the peak, by category.
        place: Where the peak is, such as `backward of lm_head`.
        first_peak: The most allocated bytes in the first step.
        first_place: Where that is.
        segments: What the allocator has taken from the driver after the steady step.
    """

    alive: Alive
    place: str
    first_peak: int
    first_place: str
    segments: int


def step_memory(trace: Trace) -> StepMemory:
    """The peaks of the first and of a steady step of a training."""
    found = step_allocations(trace)
    return StepMemory(
        alive=found.steady.peak.alive,
        place=place(trace, found.steady.peak),
        first_peak=found.first.peak.alive.total,
        first_place=place(trace, found.first.peak),
        segments=found.steady.reserved,
    )


def place(trace: Trace, moment: Moment) -> str:
    """The pass and operator of a moment, such as `backward of lm_head`."""
    if moment.part == "optimizer" or moment.operator is None:
        return "the optimizer" if moment.part == "optimizer" else moment.part
    name = operator_name(trace.unrolled, moment.operator)
    return f"{moment.part} of {name}" if name else moment.part
