"""Put what the tracer noted into operators: leaf modules, whole helpers, single functions."""

from dataclasses import replace

from llmsim_magic.capture.tracer import (
    FunctionCall,
    HelperCall,
    KernelCall,
    ModuleCall,
    Recorder,
)
from llmsim_magic.records.trace import Kernel, Operator

Step = ModuleCall | HelperCall | FunctionCall


def assemble(
    recorder: Recorder, results: tuple[int, ...]
) -> tuple[tuple[Operator, ...], tuple[Kernel, ...]]:
    """Operators in execution order, and every kernel with the operator it belongs to."""
    orders: dict[Step, int] = {}
    for event in recorder.events:
        if isinstance(event, ModuleCall):
            orders[event] = len(orders)
        elif not event.kernel.is_view and not isinstance(event.owner, ModuleCall):
            orders.setdefault(_step(event), len(orders))
    owners = [orders.get(_step(call)) for call in recorder.kernels]
    outputs = _outputs_of_helpers(recorder, owners, results)
    operators = tuple(_operator(step, outputs.get(order, ())) for step, order in orders.items())
    kernels = tuple(
        replace(call.kernel, operator=owner)
        for call, owner in zip(recorder.kernels, owners, strict=True)
    )
    return operators, kernels


def _step(call: KernelCall) -> Step:
    """The leaf module, the outermost helper that is whole, or the function itself."""
    owner = call.owner
    if isinstance(owner, FunctionCall):
        for helper in owner.helpers:
            if helper.is_whole:
                return helper
    return owner


def _operator(step: Step, helper_outputs: tuple[int, ...]) -> Operator:
    outputs = helper_outputs if isinstance(step, HelperCall) else step.outputs
    if isinstance(step, ModuleCall):
        name = type(step.module).__name__
        return Operator(step.path, name, "module", step.inputs, outputs, step.source)
    return Operator(step.path, step.name, "function", step.inputs, outputs, step.source)


def _outputs_of_helpers(
    recorder: Recorder, owners: list[int | None], results: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    """What leaves each operator: tensors made inside it that something outside it reads."""
    storage = [tensor.storage for tensor in recorder.table.tensors]
    written_by: dict[int, int] = {}
    made_by: dict[int, int] = {}
    leaving: dict[int, dict[int, None]] = {}

    def read(tensor: int, reader: int | None) -> None:
        maker = made_by.get(tensor)
        if maker is not None and maker != reader:
            leaving.setdefault(maker, {})[tensor] = None

    for call, owner in zip(recorder.kernels, owners, strict=True):
        for tensor in call.kernel.inputs:
            read(tensor, owner)
        if owner is None:
            continue
        for tensor in call.kernel.writes:
            written_by[storage[tensor]] = owner
        for tensor in call.kernel.outputs:
            if written_by.get(storage[tensor]) == owner:
                made_by.setdefault(tensor, owner)
    for tensor in results:
        read(tensor, None)
    return {maker: tuple(sorted(tensors)) for maker, tensors in leaving.items()}
