"""Check that the parts of a decoded trace refer to each other as those of a recorded one do."""

from collections.abc import Iterable, Iterator

from llmsim_magic.records.trace.recorded import Calls, Record, Replay
from llmsim_magic.records.trace.trace import Trace


def has_valid_indices(trace: Trace) -> bool:
    """Whether every tensor, storage, operator and kernel that a part names exists."""
    record = trace.recorded
    operators, kernels = len(record.operators), len(record.kernels)
    return (
        _are_within(len(record.storages), (tensor.storage for tensor in record.tensors))
        and _are_within(len(record.tensors), _tensors_of(record, trace.replays))
        and _are_within(operators, (k.operator for k in record.kernels if k.operator is not None))
        and all(
            0 <= first <= last <= most and 0 <= before <= most
            for replay in trace.replays
            for (first, last), before, most in (
                (replay.operators, replay.before_operator, operators),
                (replay.kernels, replay.before_kernel, kernels),
            )
        )
    )


def _are_within(length: int, indices: Iterable[int]) -> bool:
    found = set(indices)
    return not found or (min(found) >= 0 and max(found) < length)


def _tensors_of(record: Record, replays: tuple[Replay, ...]) -> Iterator[int]:
    """Every reference to a tensor."""
    yield from record.results
    for kernel in record.kernels:
        yield from (*kernel.inputs, *kernel.outputs, *kernel.writes, *kernel.held)
    for operator in record.operators:
        yield from (*operator.inputs, *operator.outputs, *operator.held)
    yield from _tensors_of_calls(record.calls)
    for replay in replays:
        yield from replay.held
        for pair in replay.tensors:
            yield from pair
        yield from _tensors_of_calls(replay.calls)


def _tensors_of_calls(calls: Iterable[Calls]) -> Iterator[int]:
    for each in calls:
        yield from (*each.inputs, *each.outputs, *each.held)
