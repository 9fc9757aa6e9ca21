"""Where in a training step each unit of parameters runs: its kernels, forward and backward."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from llmsim_magic.analyses.graph.layers import layer_of, list_paths
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace

_FORWARD: tuple[Pass, ...] = ("forward",)
_BACKWARD: tuple[Pass, ...] = ("recompute", "backward")


@dataclass(frozen=True, slots=True)
class Run:
    """The kernels from `first` to before `end`, in which a unit runs."""

    unit: str
    first: int
    end: int


def unit_runs(
    trace: Trace, parts: Sequence[Pass], units: Container[str], unit_of_storage: Mapping[int, str]
) -> tuple[list[Run], list[Run]]:
    """The runs of the units that are layers, of forward and of backward, in order.

    A run ends where another layer's begins; what runs in between and is in no layer belongs to it.
    A kernel is in the unit of the parameters that it reads, whichever layer calls it.

    Args:
        trace: The step.
        parts: The pass of each kernel.
        units: The paths of the units.
        unit_of_storage: The unit of each parameter's storage.
    """
    record, stacks = trace.recorded, list_paths(trace)
    of_operator = [layer_of(operator.path, stacks) for operator in record.operators]
    found: tuple[list[Run], list[Run]] = ([], [])
    for place, (kernel, part) in enumerate(zip(record.kernels, parts, strict=True)):
        read = (unit_of_storage.get(record.tensors[index].storage) for index in kernel.inputs)
        unit = next(filter(None, read), None)
        if unit is None and kernel.operator is not None:
            layer = of_operator[kernel.operator]
            unit = None if layer is None else layer.path
        if not unit or unit not in units or part not in (*_FORWARD, *_BACKWARD):
            continue
        runs = found[part in _BACKWARD]
        if runs and runs[-1].unit == unit:
            runs[-1] = Run(unit, runs[-1].first, place + 1)
        else:
            runs.append(Run(unit, place, place + 1))
    return found
