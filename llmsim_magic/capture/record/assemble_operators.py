"""Assemble recorded events into operators: leaf modules, whole helpers and single functions."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from llmsim_magic.capture.record.events import (
    BackwardCall,
    ForwardStep,
    FunctionCall,
    HelperCall,
    KernelCall,
    ModuleCall,
    Owner,
    ReplayCall,
    Step,
)
from llmsim_magic.capture.record.recorder import Recorder
from llmsim_magic.records.trace.recorded import Calls, Operator, Record, Replay


def assemble_operators(
    recorder: Recorder, results: tuple[int, ...]
) -> tuple[Record, tuple[Replay, ...]]:
    """Assemble the record of a pass.

    Args:
        recorder: The recorder of the pass.
        results: Numbers of the tensors that the pass returned.

    Returns:
        The record, with operators in execution order and each kernel assigned to its operator,
        and the replays of layers.
    """
    _merge_backward(recorder.kernels)
    orders: dict[Step, int] = {}
    operators_before = [0]  # number of operators before each event
    for event in recorder.events:
        if isinstance(event, ModuleCall):
            orders[event] = len(orders)
        elif (
            isinstance(event, KernelCall)
            and not event.kernel.is_view
            and not isinstance(event.owner, ModuleCall)
        ):
            orders.setdefault(_step(event), len(orders))
        operators_before.append(len(orders))
    steps = [_step(call) for call in recorder.kernels]
    recorder.lists.assign(
        {step for step in steps if step in orders and not isinstance(step, BackwardCall)}
    )
    owners = [orders.get(step) for step in steps]
    outputs = _outputs_of_helpers(recorder, owners, results)
    inputs = _inputs_of_backward(recorder, owners)
    held = _held_inside(recorder, steps)
    saved = _saved(recorder)
    viewed = _viewed(recorder, orders)
    record = Record(
        storages=recorder.table.storages(),
        tensors=tuple(recorder.table.tensors),
        kernels=tuple(
            replace(
                call.kernel,
                operator=owner,
                held=(*held.get(place, ()), *call.kept),
                frees=tuple(call.frees),
            )
            for place, (call, owner) in enumerate(zip(recorder.kernels, owners, strict=True))
        ),
        operators=tuple(
            _backward_operator(step, orders, viewed, inputs.get(order, ()), outputs.get(order, ()))
            if isinstance(step, BackwardCall)
            else _operator(step, outputs.get(order, ()), saved.get(step, ()))
            for step, order in orders.items()
        ),
        calls=_calls(recorder.calls),
        results=results,
    )
    return record, tuple(_replays(recorder, operators_before))


def _replays(recorder: Recorder, operators_before: list[int]) -> Iterator[Replay]:
    spans = {event.span for event in recorder.events if isinstance(event, ReplayCall)}
    calls = {span: _calls(recorder.calls[slice(*span.calls)]) for span in spans}
    numbers: dict[ReplayCall, int] = {}
    for place, event in enumerate(recorder.events):
        if not isinstance(event, ReplayCall):
            continue
        first, last = event.span.events
        numbers[event] = len(numbers)
        yield Replay(
            path=event.path,
            of=event.of,
            operators=(operators_before[first], operators_before[last]),
            kernels=event.span.kernels,
            before_operator=operators_before[place],
            before_kernel=event.before_kernel,
            tensors=event.tensors,
            calls=calls[event.span],
            is_first=event.is_first,
            held=event.held,
            resumes=None if event.resumes is None else numbers[event.resumes],
            frees=tuple(event.frees),
        )


def _calls(calls: Sequence[ModuleCall]) -> tuple[Calls, ...]:
    """The calls of each module, sorted by path."""
    counts = Counter(call.path for call in calls)
    first: dict[str, ModuleCall] = {}
    for call in calls:
        first.setdefault(call.path, call)
    return tuple(
        Calls(path, counts[path], call.inputs, call.outputs, call.held)
        for path, call in sorted(first.items())
    )


def _step(call: KernelCall) -> Step:
    """What a kernel is shown as: its leaf module, its outermost whole helper, or its function."""
    owner = call.owner
    return owner if isinstance(owner, BackwardCall) else _shown(owner)


def _shown(owner: ModuleCall | FunctionCall) -> ForwardStep:
    if isinstance(owner, FunctionCall):
        for helper in owner.helpers:
            if helper.is_whole:
                return helper
    return owner


def _held_inside(recorder: Recorder, steps: list[Step]) -> dict[int, tuple[int, ...]]:
    """Tensors that variables inside an operator reference for longer than its kernels use them.

    Returns:
        By the place of the last kernel that runs meanwhile. A function by itself has none: what
        its callers reference is in `Operator.held`.
    """
    storage = [tensor.storage for tensor in recorder.table.tensors]
    used: dict[tuple[Step, int], int] = {}
    held: dict[tuple[Step, int], tuple[int, int]] = {}
    for place, (call, step) in enumerate(zip(recorder.kernels, steps, strict=True)):
        if isinstance(step, (FunctionCall, BackwardCall)):
            continue
        kernel = call.kernel
        for tensor in (*kernel.inputs, *kernel.outputs, *kernel.writes):
            used[step, storage[tensor]] = place
        for tensor in call.held:
            if (step, storage[tensor]) in used:
                held[step, storage[tensor]] = place, tensor
    found: dict[int, tuple[int, ...]] = {}
    for key, (place, tensor) in held.items():
        if place > used[key]:
            found[place] = (*found.get(place, ()), tensor)
    return found


def _operator(
    step: ForwardStep,
    helper_outputs: tuple[int, ...],
    saved: tuple[int, ...],
) -> Operator:
    is_module = isinstance(step, ModuleCall)
    return Operator(
        step.path,
        _name(step),
        "module" if is_module else "function",
        step.inputs,
        helper_outputs if isinstance(step, HelperCall) else step.outputs,
        step.source,
        step.held,
        step.part,
        saved=saved,
    )


def _name(step: ForwardStep) -> str:
    return type(step.module).__name__ if isinstance(step, ModuleCall) else step.name


def _viewed(recorder: Recorder, orders: dict[Step, int]) -> dict[Step, tuple[int, ...]]:
    """The tensors of which each function that is no operator makes views."""
    found: dict[Step, dict[int, None]] = {}
    for call in recorder.kernels:
        step, kernel = _step(call), call.kernel
        if step not in orders and kernel.inputs:
            found.setdefault(step, {})[kernel.inputs[0]] = None
    return {step: tuple(tensors) for step, tensors in found.items()}


def with_makers_of_views(record: Record) -> Record:
    """Name the forward operators of backward operators whose own function made views alone.

    Such a function runs no kernel, but its backward may copy a gradient: it belongs to the operator
    that wrote what is viewed, which may be in a replayed layer.

    Args:
        record: A whole pass, in which those backward operators hold the tensors that are viewed.
    """
    storages = [tensor.storage for tensor in record.tensors]
    writers: dict[int, int] = {}  # by storage
    makers: dict[int, int] = {}  # by tensor, when it is viewed
    for kernel in record.kernels:
        if kernel.operator is not None:
            writers |= dict.fromkeys((storages[each] for each in kernel.writes), kernel.operator)
        elif kernel.inputs and storages[kernel.inputs[0]] in writers:
            makers.setdefault(kernel.inputs[0], writers[storages[kernel.inputs[0]]])

    def completed(operator: Operator) -> Operator:
        if operator.part != "backward" or not operator.held:
            return operator
        found = next((makers[each] for each in operator.held if each in makers), None)
        return replace(operator, backward_of=found, held=())

    return dataclasses.replace(record, operators=tuple(map(completed, record.operators)))


def _backward_operator(
    call: BackwardCall,
    orders: dict[Step, int],
    viewed: dict[Step, tuple[int, ...]],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> Operator:
    """A backward operator; one whose function made views alone holds what those view."""
    forward = _shown(call.forward)
    return Operator(
        forward.path,
        _name(forward),
        "module" if isinstance(forward, ModuleCall) else "function",
        inputs,
        outputs,
        forward.source,
        part=call.part,
        backward_of=orders.get(forward),
        held=() if forward in orders else viewed.get(forward, ()),
    )


def _merge_backward(kernels: Sequence[KernelCall]) -> None:
    """Let consecutive kernels that compute the gradients of one operator have one owner."""
    last: BackwardCall | None = None
    for call in kernels:
        owner = call.owner
        if not isinstance(owner, BackwardCall):
            last = None
        elif last is not None and _shown(last.forward) is _shown(owner.forward):
            call.owner = last
        else:
            last = owner


def _saved(recorder: Recorder) -> dict[Step, tuple[int, ...]]:
    """The tensors that autograd keeps for each operator."""
    found: dict[Step, dict[int, None]] = {}
    seen: set[Owner] = set()
    for call in recorder.kernels:
        owner = call.owner
        if owner not in seen and not isinstance(owner, BackwardCall) and owner.saved:
            seen.add(owner)
            found.setdefault(_shown(owner), {}).update(dict.fromkeys(owner.saved))
    return {step: tuple(tensors) for step, tensors in found.items()}


def _inputs_of_backward(recorder: Recorder, owners: list[int | None]) -> dict[int, tuple[int, ...]]:
    """The tensors that each backward operator reads and did not make itself."""
    storage = [tensor.storage for tensor in recorder.table.tensors]
    made: dict[int, set[int]] = {}
    found: dict[int, dict[int, int]] = {}  # by storage
    for call, owner in zip(recorder.kernels, owners, strict=True):
        if owner is None or call.kernel.is_view or not isinstance(call.owner, BackwardCall):
            continue
        own = made.setdefault(owner, set())
        for tensor in call.kernel.inputs:
            if storage[tensor] not in own:
                found.setdefault(owner, {}).setdefault(storage[tensor], tensor)
        own.update(storage[tensor] for tensor in call.kernel.writes)
    return {owner: tuple(tensors.values()) for owner, tensors in found.items()}


def _outputs_of_helpers(
    recorder: Recorder, owners: list[int | None], results: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    """The outputs of each operator: tensors made inside it and read outside it."""
    storage = [tensor.storage for tensor in recorder.table.tensors]
    writer_of: dict[int, int] = {}
    maker_of: dict[int, int] = {}
    outputs: dict[int, dict[int, None]] = {}

    def read(tensor: int, reader: int | None) -> None:
        maker = maker_of.get(tensor)
        if maker is not None and maker != reader:
            outputs.setdefault(maker, {})[tensor] = None

    for call, owner in zip(recorder.kernels, owners, strict=True):
        for tensor in call.kernel.inputs:
            read(tensor, owner)
        if owner is None:
            continue
        for tensor in call.kernel.writes:
            writer_of[storage[tensor]] = owner
        for tensor in call.kernel.outputs:
            if writer_of.get(storage[tensor]) == owner:
                maker_of.setdefault(tensor, owner)
    for tensor in (*results, *_read_by_replays(recorder)):
        read(tensor, None)
    return {maker: tuple(sorted(tensors)) for maker, tensors in outputs.items()}


def _read_by_replays(recorder: Recorder) -> Iterator[int]:
    """Tensors that replayed layers read, and tensors of the layers they repeat that others read."""
    replays = [event for event in recorder.events if isinstance(event, ReplayCall)]
    inside = {
        span: _inputs(recorder.kernels[slice(*span)]) for span in {r.span.kernels for r in replays}
    }
    readers: Counter[int] = Counter(_inputs(recorder.kernels))
    reads = []
    for event in replays:
        read = inside[event.span.kernels]
        reads.append({own for one, own in event.tensors if one in read})
        readers.update(reads[-1])
    for event, own_reads in zip(replays, reads, strict=True):
        yield from own_reads
        yield from (one for one, own in event.tensors if readers[own] > (own in own_reads))


def _inputs(calls: list[KernelCall]) -> set[int]:
    return {tensor for call in calls for tensor in call.kernel.inputs}
