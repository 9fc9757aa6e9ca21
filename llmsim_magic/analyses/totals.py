"""What each operator costs, and what the whole pass does."""

from dataclasses import dataclass

from llmsim_magic.analyses import work
from llmsim_magic.analyses.experts import active_parameters
from llmsim_magic.analyses.once import once
from llmsim_magic.analyses.traffic import traffic
from llmsim_magic.records.trace import Parameter, Trace


@dataclass(frozen=True, slots=True)
class Cost:
    """One operator's work; `flops` and `elementwise_ops` are None where a kernel has no formula."""

    flops: int | None
    elementwise_ops: int | None
    causal_skippable_flops: int
    bytes_read: int
    bytes_written: int
    parameters: tuple[Parameter, ...]

    @property
    def params(self) -> int:
        return sum(parameter.numel for parameter in self.parameters)


@once
def costs(trace: Trace) -> tuple[Cost, ...]:
    """The cost of each operator."""
    parameters = {p.name: place for place, p in enumerate(trace.parameters)}
    moved = traffic(trace)
    found = []
    for order, kernels in enumerate(trace.kernels_of):
        counted = [work.elementwise_ops(trace, kernel) for kernel in kernels]
        known = None not in counted
        read = {
            parameters[storage.name]
            for kernel in kernels
            for index in kernel.inputs
            if (storage := trace.storages[trace.tensors[index].storage]).role == "parameter"
            and storage.name is not None
        }
        found.append(
            Cost(
                sum(kernel.flops or 0 for kernel in kernels) if known else None,
                sum(ops or 0 for ops in counted) if known else None,
                sum(work.causal_skippable(trace, kernel) for kernel in kernels),
                moved[order].bytes_read,
                moved[order].bytes_written,
                tuple(trace.parameters[place] for place in sorted(read)),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the pass. Parameters are counted once however often they are shared."""

    operators: int
    parameters: int
    active: int
    trainable: int
    parameter_bytes: int
    buffer_bytes: int
    flops: int
    elementwise_ops: int
    causal_skippable_flops: int
    bytes_read: int
    bytes_written: int
    cache_bytes: int


@once
def totals(trace: Trace) -> Totals:
    own = [parameter for parameter in trace.parameters if parameter.tied_to is None]
    weights = [parameter for parameter in own if not parameter.is_buffer]
    each = costs(trace)
    return Totals(
        operators=len(trace.operators),
        parameters=sum(parameter.numel for parameter in weights),
        active=active_parameters(trace),
        trainable=sum(parameter.numel for parameter in weights if parameter.trainable),
        parameter_bytes=sum(parameter.nbytes for parameter in weights),
        buffer_bytes=sum(parameter.nbytes for parameter in own if parameter.is_buffer),
        flops=sum(kernel.flops or 0 for kernel in trace.kernels),
        elementwise_ops=sum(cost.elementwise_ops or 0 for cost in each),
        causal_skippable_flops=sum(cost.causal_skippable_flops for cost in each),
        bytes_read=sum(cost.bytes_read for cost in each),
        bytes_written=sum(cost.bytes_written for cost in each),
        cache_bytes=sum(slot.nbytes for slot in trace.cache),
    )


def operator_types(trace: Trace) -> dict[str, int]:
    """How many operators there are of each type, most first."""
    counts: dict[str, int] = {}
    for operator in trace.operators:
        counts[operator.op] = counts.get(operator.op, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
