"""Put what the tracer noted into operators: leaf modules, whole helpers, single functions."""

from typing import Literal

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
        elif not event.is_view and not isinstance(event.owner, ModuleCall):
            orders.setdefault(_step(event), len(orders))
    owners = [orders.get(_step(kernel)) for kernel in recorder.kernels]
    outputs = _outputs_of_helpers(recorder, owners, results)
    operators = tuple(_operator(step, outputs.get(order, ())) for step, order in orders.items())
    kernels = tuple(
        Kernel(
            kernel.name,
            owner,
            kernel.inputs,
            kernel.outputs,
            kernel.writes,
            kernel.is_view,
            kernel.pointwise,
            kernel.causal,
            kernel.flops,
        )
        for kernel, owner in zip(recorder.kernels, owners, strict=True)
    )
    return operators, kernels


def _step(kernel: KernelCall) -> Step:
    """The leaf module, the outermost helper that is whole, or the function itself."""
    owner = kernel.owner
    if isinstance(owner, FunctionCall):
        for helper in owner.helpers:
            if helper.is_whole:
                return helper
    return owner


def _operator(step: Step, helper_outputs: tuple[int, ...]) -> Operator:
    if isinstance(step, ModuleCall):
        name, kind, outputs = type(step.module).__name__, "module", step.outputs
    elif isinstance(step, HelperCall):
        name, kind, outputs = step.name, "function", helper_outputs
    else:
        name, kind, outputs = step.name, "function", step.outputs
    literal: Literal["module", "function"] = "module" if kind == "module" else "function"
    return Operator(step.path, name, literal, step.inputs, outputs, step.source)


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

    for kernel, owner in zip(recorder.kernels, owners, strict=True):
        for tensor in kernel.inputs:
            read(tensor, owner)
        if owner is None:
            continue
        for tensor in kernel.writes:
            written_by[storage[tensor]] = owner
        for tensor in kernel.outputs:
            if written_by.get(storage[tensor]) == owner:
                made_by.setdefault(tensor, owner)
    for tensor in results:
        read(tensor, None)
    return {maker: tuple(sorted(tensors)) for maker, tensors in leaving.items()}
