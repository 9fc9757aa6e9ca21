"""What each kernel of a training step allocates, and what is freed after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llmsim_magic.records.trace.recorded import Pass, Record, Role
from llmsim_magic.records.trace.trace import Trace

Stage = Literal["forward", "backward", "optimizer"]
STAGE_OF: Mapping[Pass, Stage] = {
    "forward": "forward",
    "recompute": "backward",
    "backward": "backward",
    "optimizer": "optimizer",
}
CATEGORIES = ("parameters", "gradients", "optimizer", "saved", "temporaries")
PARAMETERS, GRADIENTS, OPTIMIZER, SAVED, TEMPORARIES = range(len(CATEGORIES))
# What a step finds; constants are scalars on the host.
_EXISTING: tuple[Role, ...] = ("parameter", "buffer", "constant", "optimizer", "input")


_NONE: tuple["Sized", ...] = ()


class Sized(NamedTuple):
    """A storage with its bytes and the index of its category."""

    storage: int
    nbytes: int
    category: int


class Event(NamedTuple):
    """A kernel that allocates storages, or after which some are freed."""

    kernel: int
    operator: int | None
    part: Pass
    made: Sequence[Sized]
    freed: Sequence[Sized]


@dataclass(frozen=True, slots=True)
class StepEvents:
    """What happens in a step.

    Attributes:
        stages: For each pass its first kernel, and those that change what is allocated.
        batch: The inputs, which every step has.
        gradients: Those that exist before the step, from earlier micro-batches.
        states: What the optimizer keeps from step to step.
        left: What is dropped after the optimizer has stepped: gradients.
    """

    stages: dict[Stage, list[Event]]
    batch: Sequence[Sized]
    gradients: Sequence[Sized]
    states: Sequence[Sized]
    left: Sequence[Sized]


def step_events(trace: Trace) -> StepEvents:
    """The allocations and frees of a training step, in order."""
    record = trace.unrolled
    roles = [storage.role for storage in record.storages]
    accumulates = trace.training is not None and trace.training.accumulate > 1
    gradients = [each for each, role in enumerate(roles) if accumulates and role == "gradient"]
    existing = {*_EXISTING, "gradient"} if accumulates else {*_EXISTING}
    made = {each: at for each, at in _first_writes(record).items() if roles[each] not in existing}
    freed = {
        storage: at
        for at, kernel in enumerate(record.kernels)
        for storage in kernel.frees
        if storage in made
    }
    last = len(record.kernels) - 1
    at_end = [each for each, at in freed.items() if at == last and roles[each] == "gradient"]
    left = (*gradients, *at_end, *(each for each in made if each not in freed))
    for each in at_end:
        del freed[each]
    parts = record.kernel_parts
    categories = _categories(record, parts, made, freed)
    sized = [
        Sized(number, storage.nbytes, category)
        for number, (storage, category) in enumerate(zip(record.storages, categories, strict=True))
    ]
    born, gone = _by_kernel(sized, made), _by_kernel(sized, freed)
    stages: dict[Stage, list[Event]] = {}
    for at, (kernel, part) in enumerate(zip(record.kernels, parts, strict=True)):
        stage = STAGE_OF[part]
        if at in born or at in gone or stage not in stages:
            event = Event(at, kernel.operator, part, born.get(at, _NONE), gone.get(at, _NONE))
            stages.setdefault(stage, []).append(event)
    return StepEvents(
        stages=stages,
        batch=[each for each in sized if roles[each.storage] == "input"],
        gradients=[sized[each] for each in gradients],
        states=[each for each in sized if roles[each.storage] == "optimizer"],
        left=[sized[each] for each in left],
    )


def _first_writes(record: Record) -> dict[int, int]:
    """The kernel that first writes each storage."""
    storage_of = [tensor.storage for tensor in record.tensors]
    found: dict[int, int] = {}
    for at, kernel in enumerate(record.kernels):
        if kernel.is_view:
            continue
        for index in kernel.outputs:
            found.setdefault(storage_of[index], at)
        if kernel.writes != kernel.outputs:
            for index in kernel.writes:
                found.setdefault(storage_of[index], at)
    return found


def _categories(
    record: Record, parts: Sequence[Pass], made: Mapping[int, int], freed: Mapping[int, int]
) -> list[int]:
    """The category of each storage.

    What forward makes and backward finds is saved, whether autograd keeps it or checkpointing; so
    is what a recomputed forward makes for backward.
    """
    of_role = {"gradient": GRADIENTS, "optimizer": OPTIMIZER, "gathered": PARAMETERS}
    found = [of_role.get(storage.role, TEMPORARIES) for storage in record.storages]
    last = len(parts) - 1
    for storage, at in made.items():
        end = parts[freed.get(storage, last)]
        crosses = (parts[at] == "forward" and end != "forward") or (
            parts[at] == "recompute" and end == "backward"
        )
        if crosses and found[storage] == TEMPORARIES:
            found[storage] = SAVED
    return found


def _by_kernel(sized: Sequence[Sized], places: Mapping[int, int]) -> dict[int, list[Sized]]:
    found: dict[int, list[Sized]] = {}
    for storage, at in places.items():
        found.setdefault(at, []).append(sized[storage])
    return found
