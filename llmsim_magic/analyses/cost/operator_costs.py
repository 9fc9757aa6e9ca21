"""What each operator costs, and what the whole pass does."""

from dataclasses import dataclass, replace

from llmsim_magic.analyses.cost.mixture_of_experts import active_parameters
from llmsim_magic.analyses.cost.traffic import traffic
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Replay
from llmsim_magic.records.trace.trace import Parameter, Trace


@dataclass(frozen=True, slots=True)
class Cost:
    """One operator's work; `flops` and `elementwise_ops` are None where a kernel has no formula."""

    flops: int | None
    elementwise_ops: int | None
    causal_skippable_flops: int
    bytes_read: int
    bytes_written: int
    bytes_weights: int
    bytes_activations: int
    bytes_cache: int
    parameters: tuple[Parameter, ...]

    @property
    def params(self) -> int:
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def arithmetic_intensity(self) -> float | None:
        """FLOPs for each byte moved; None where the FLOPs are not known or nothing is moved."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)


def intensity(flops: int | None, nbytes: int) -> float | None:
    """FLOPs per byte; None where either is missing."""
    return None if flops is None or not nbytes else flops / nbytes


@memoize
def costs(trace: Trace) -> tuple[Cost, ...]:
    """The cost of each operator; the parameters of a replayed layer's are the recorded one's."""
    recorded = recorded_costs(trace)
    own = {id(replay): _own_split(trace, replay) for replay in trace.replays}
    return tuple(
        recorded[operator] if replay is None else own[id(replay)].get(operator, recorded[operator])
        for operator, replay in trace.steps
    )


def _own_split(trace: Trace, replay: Replay) -> dict[int, Cost]:
    """The costs of a replayed layer's operators whose tensors are not what the recorded one's are.

    What one layer hands on may be kept as state, and what the last hands on may not.
    """
    record = trace.recorded
    roles = {
        one.storage: record.storages[other.storage].role
        for pair in replay.tensors
        for one, other in [(record.tensors[pair[0]], record.tensors[pair[1]])]
        if record.storages[one.storage].role != record.storages[other.storage].role
    }
    if not roles:
        return {}
    moved, found = traffic(record), recorded_costs(trace)
    own: dict[int, Cost] = {}
    for operator in range(*replay.operators):
        split = moved[operator].as_if(record, roles)
        own[operator] = replace(
            found[operator],
            bytes_weights=split.bytes_weights,
            bytes_activations=split.bytes_activations,
            bytes_cache=split.bytes_cache,
        )
    return own


@memoize
def recorded_costs(trace: Trace) -> tuple[Cost, ...]:
    """The cost of each recorded operator."""
    record = trace.recorded
    parameters = {p.name: place for place, p in enumerate(trace.parameters)}
    moved = traffic(record)
    found = []
    for order, kernels in enumerate(record.kernels_by_operator):
        counted = [elementwise_work.elementwise_ops(record, kernel) for kernel in kernels]
        known = None not in counted
        read = {
            parameters[storage.name]
            for kernel in kernels
            for index in kernel.inputs
            if (storage := record.storages[record.tensors[index].storage]).role == "parameter"
            and storage.name is not None
        }
        found.append(
            Cost(
                sum(kernel.flops or 0 for kernel in kernels) if known else None,
                sum(ops or 0 for ops in counted) if known else None,
                sum(elementwise_work.causal_skippable(record, kernel) for kernel in kernels),
                moved[order].bytes_read,
                moved[order].bytes_written,
                moved[order].bytes_weights,
                moved[order].bytes_activations,
                moved[order].bytes_cache,
                tuple(trace.parameters[place] for place in sorted(read)),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the pass. Parameters are counted once however often they are shared.

    `bytes_weights`, `bytes_activations` and `bytes_cache` share out all that is read and written.
    """

    operators: int
    kernels: int
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
    bytes_weights: int
    bytes_activations: int
    bytes_cache: int
    cache_bytes: int

    @property
    def arithmetic_intensity(self) -> float | None:
        """FLOPs for each byte moved."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)


@memoize
def totals(trace: Trace) -> Totals:
    own = [parameter for parameter in trace.parameters if parameter.tied_to is None]
    weights = [parameter for parameter in own if not parameter.is_buffer]
    each = [(cost, trace.times[operator]) for operator, cost in enumerate(recorded_costs(trace))]
    return Totals(
        operators=len(trace.steps),
        kernels=_kernels(trace),
        parameters=sum(parameter.numel for parameter in weights),
        active=active_parameters(trace),
        trainable=sum(parameter.numel for parameter in weights if parameter.trainable),
        parameter_bytes=sum(parameter.nbytes for parameter in weights),
        buffer_bytes=sum(parameter.nbytes for parameter in own if parameter.is_buffer),
        flops=_flops(trace),
        elementwise_ops=sum((cost.elementwise_ops or 0) * times for cost, times in each),
        causal_skippable_flops=sum(cost.causal_skippable_flops * times for cost, times in each),
        bytes_read=sum(cost.bytes_read * times for cost, times in each),
        bytes_written=sum(cost.bytes_written * times for cost, times in each),
        bytes_weights=sum(cost.bytes_weights for cost in costs(trace)),
        bytes_activations=sum(cost.bytes_activations for cost in costs(trace)),
        bytes_cache=sum(cost.bytes_cache for cost in costs(trace)),
        cache_bytes=sum(slot.nbytes for slot in trace.cache),
    )


def _kernels(trace: Trace) -> int:
    replayed = sum(last - first for first, last in (replay.kernels for replay in trace.replays))
    return len(trace.recorded.kernels) + replayed


def _flops(trace: Trace) -> int:
    return sum(
        (kernel.flops or 0) * (1 if kernel.operator is None else trace.times[kernel.operator])
        for kernel in trace.recorded.kernels
    )


def operator_types(trace: Trace) -> dict[str, int]:
    """How many operators there are of each type, most first."""
    counts: dict[str, int] = {}
    for order, operator in enumerate(trace.recorded.operators):
        counts[operator.op] = counts.get(operator.op, 0) + trace.times[order]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
