"""What training steps allocate, in blocks of PyTorch's allocator: the first step and a steady one.

The first step begins without states of the optimizer, which it creates when it first steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

from llmsim_magic.analyses.allocations.caching_allocator import Block, CachingAllocator
from llmsim_magic.analyses.allocations.step_events import (
    CATEGORIES,
    PARAMETERS,
    Event,
    Sized,
    Stage,
    step_events,
)
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace


class Alive(NamedTuple):
    """Allocated bytes at one moment, in whole blocks, by category.

    Attributes:
        parameters: Parameters and buffers.
        gradients: Gradients of parameters, from the kernel that writes them to `zero_grad`.
        optimizer: What the optimizer keeps from step to step.
        saved: What a forward pass, or a recomputed one, makes and backward still needs.
        temporaries: All other tensors, the batch among them.
    """

    parameters: int
    gradients: int
    optimizer: int
    saved: int
    temporaries: int

    @property
    def total(self) -> int:
        return sum(self)


class Moment(NamedTuple):
    """What is allocated while a kernel runs.

    Attributes:
        kernel: Its index in the unrolled record.
        operator: The operator that runs it, or None.
        part: The pass that it is in.
        alive: The bytes of each category.
        left: Those when it has run, and what nothing refers to any more is freed.
    """

    kernel: int
    operator: int | None
    part: Pass
    alive: Alive
    left: Alive


class StageBytes(NamedTuple):
    """The most bytes that are allocated while a pass runs, and those after it.

    After the optimizer: before `zero_grad` drops the gradients.
    """

    peak: int
    after: int


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes of one step.

    Attributes:
        stages: Those of forward, of backward with what it recomputes, and of the optimizer.
        peak: The first moment of the most allocated bytes.
        reserved: Segments that the allocator took from the driver up to the end of the step.
    """

    stages: dict[Stage, StageBytes]
    peak: Moment
    reserved: int


@dataclass(frozen=True, slots=True)
class StepAllocations:
    """The first step and a steady one, and the moments of the steady one in order.

    There is a moment for the first kernel of each pass, and for each that allocates or frees.
    """

    first: StepBytes
    steady: StepBytes
    moments: tuple[Moment, ...]


@memoize
def step_allocations(trace: Trace) -> StepAllocations:
    """The allocations of training steps in a new process, whose weights are loaded first."""
    return replay_steps(trace, CachingAllocator())


def replay_steps(
    trace: Trace,
    allocator: CachingAllocator,
    *,
    dropped: Iterable[int] = (),
    workspaces: Mapping[int, int] = MappingProxyType({}),
) -> StepAllocations:
    """Replay the first two steps of a training on an allocator.

    Args:
        trace: A training step.
        allocator: The allocator as the process finds it before it loads the weights.
        dropped: Bytes of tensors that loading creates after the weights, and then drops.
        workspaces: Bytes that a library keeps from a kernel of the first step on, by the index of
            the kernel. No category has them.
    """
    replay = _Replay(trace, allocator)
    replay.load(trace, dropped)
    replay.keep(workspaces)
    first = replay.step(is_first=True)
    moments: list[Moment] = []
    steady = replay.step(moments=moments)
    return StepAllocations(first, steady, tuple(moments))


_EXCHANGES = 1  # the stream of collectives


class _Replay:
    """Allocations of consecutive steps, of which the first creates the optimizer's states."""

    def __init__(self, trace: Trace, allocator: CachingAllocator) -> None:
        self._events = step_events(trace)
        self._allocator = allocator
        self._blocks: dict[int, Block | None] = {}
        self._alive = [0] * len(CATEGORIES)
        self._workspaces: dict[int, int] = {}
        storages = enumerate(trace.unrolled.storages)
        self._exchanged = {number for number, each in storages if each.role == "exchange"}

    def load(self, trace: Trace, dropped: Iterable[int]) -> None:
        """Allocate the weights, and the batch of the first step."""
        allocator = self._allocator
        for parameter in trace.parameters:
            block = allocator.allocate(parameter.nbytes) if parameter.tied_to is None else None
            if block is not None:
                self._alive[PARAMETERS] += block.nbytes
        for block in [allocator.allocate(nbytes) for nbytes in dropped]:
            if block is not None:
                allocator.free(block)
        self._make(self._events.batch)

    def keep(self, workspaces: Mapping[int, int]) -> None:
        """Have the kernels of these indices allocate what is never freed."""
        self._workspaces = dict(workspaces)

    def step(self, *, is_first: bool = False, moments: list[Moment] | None = None) -> StepBytes:
        """Run one step.

        Args:
            is_first: Whether the optimizer creates its states.
            moments: The list to add each moment to.
        """
        self._make(self._events.gradients)
        stages: dict[Stage, StageBytes] = {}
        peaks: list[tuple[int, Moment]] = []
        for stage, events in self._events.stages.items():
            if stage == "optimizer" and is_first:
                self._make(self._events.states)
            most, moment = self._run(events, moments)
            stages[stage] = StageBytes(most, self._allocator.allocated)
            peaks.append((most, moment))
        self._drop(self._events.left)
        peak = max(peaks, key=itemgetter(0))[1]
        return StepBytes(stages, peak, self._allocator.reserved)

    def _run(self, events: Sequence[Event], moments: list[Moment] | None) -> tuple[int, Moment]:
        """Run the kernels of one pass; return the most allocated bytes, and the moment of them."""
        allocator, alive = self._allocator, self._alive
        most, found = -1, None
        for kernel, operator, part, made, freed in events:
            if kernel in self._workspaces:
                allocator.allocate(self._workspaces.pop(kernel))
            self._make(made)
            nbytes = allocator.allocated
            if moments is None and nbytes <= most:
                self._drop(freed)
                continue
            now = Alive._make(alive)
            self._drop(freed)
            moment = Moment(kernel, operator, part, now, Alive._make(alive))
            if moments is not None:
                moments.append(moment)
            if nbytes > most:
                most, found = nbytes, moment
        assert found is not None  # noqa: S101 - a pass has a first kernel
        return most, found

    def _make(self, storages: Iterable[Sized]) -> None:
        allocate, blocks, alive = self._allocator.allocate, self._blocks, self._alive
        for storage, nbytes, category in storages:
            stream = _EXCHANGES if storage in self._exchanged else 0
            block = blocks[storage] = allocate(nbytes, stream)
            if block is not None:
                alive[category] += block.nbytes

    def _drop(self, storages: Iterable[Sized]) -> None:
        free, blocks, alive = self._allocator.free, self._blocks, self._alive
        for storage, _, category in storages:
            block = blocks.pop(storage)
            if block is not None:
                alive[category] -= block.nbytes
                free(block)
