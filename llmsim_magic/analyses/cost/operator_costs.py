"""The cost of each operator, and the totals of the pass."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from llmsim_magic.analyses.cost.mixture_of_experts import active_parameters
from llmsim_magic.analyses.cost.traffic import traffic
from llmsim_magic.analyses.kernels import elementwise_work
from llmsim_magic.analyses.kernels.memoize import Number, NumericAnalysis, memoize, memoize_numeric
from llmsim_magic.records.trace.recorded import WEIGHT_ROLES, Replay
from llmsim_magic.records.trace.trace import Parameter, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one operator.

    `flops` and `elementwise_ops` are None if one of its kernels has no formula. Weights,
    activations and cache add up to all bytes read and written.
    """

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
        """FLOPs per byte moved; None if the FLOPs are unknown or no byte is moved."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)


def intensity(flops: int | None, nbytes: int) -> float | None:
    """FLOPs per byte; None if either is unknown or zero bytes are moved."""
    return None if flops is None or not nbytes else flops / nbytes


@memoize
def costs(trace: Trace) -> tuple[Cost, ...]:
    """The cost of each operator of the pass.

    For a replayed layer `parameters` are those of the recorded layer.
    """
    recorded = recorded_costs(trace)
    own = {id(replay): _costs_with_own_roles(trace, replay) for replay in trace.replays}
    return tuple(
        recorded[operator] if replay is None else own[id(replay)].get(operator, recorded[operator])
        for operator, replay in trace.steps
    )


def _costs_with_own_roles(trace: Trace, replay: Replay) -> dict[int, Cost]:
    """The costs of a replayed layer whose tensors have other roles than in the recorded layer.

    One layer's output may be cached as state, while the last layer's output is not.
    """
    record = trace.recorded
    roles = {
        recorded.storage: record.storages[replayed.storage].role
        for pair in replay.tensors
        for recorded, replayed in [(record.tensors[pair[0]], record.tensors[pair[1]])]
        if record.storages[recorded.storage].role != record.storages[replayed.storage].role
    }
    if not roles:
        return {}
    moved, found = traffic(record), recorded_costs(trace)
    own: dict[int, Cost] = {}
    for operator in range(*replay.operators):
        split = moved[operator].with_roles(record, roles)
        own[operator] = replace(
            found[operator],
            bytes_weights=split.bytes_weights,
            bytes_activations=split.bytes_activations,
            bytes_cache=split.bytes_cache,
        )
    return own


def _recorded_costs(trace: Trace) -> tuple[Cost, ...]:
    """The cost of each recorded operator."""
    record = trace.recorded
    index_of = {p.name: index for index, p in enumerate(trace.parameters)}
    moved = traffic(record)
    found = []
    for order, kernels in enumerate(record.kernels_by_operator):
        elementwise = [elementwise_work.elementwise_ops(record, kernel) for kernel in kernels]
        is_known = None not in elementwise
        parameters_read = {
            index_of[storage.name]
            for kernel in kernels
            for index in kernel.inputs
            if (storage := record.storages[record.tensors[index].storage]).role in WEIGHT_ROLES
            and storage.name is not None
        }
        found.append(
            Cost(
                flops=sum(kernel.flops or 0 for kernel in kernels) if is_known else None,
                elementwise_ops=sum(ops or 0 for ops in elementwise) if is_known else None,
                causal_skippable_flops=sum(
                    elementwise_work.causal_skippable_flops(record, kernel) for kernel in kernels
                ),
                bytes_read=moved[order].bytes_read,
                bytes_written=moved[order].bytes_written,
                bytes_weights=moved[order].bytes_weights,
                bytes_activations=moved[order].bytes_activations,
                bytes_cache=moved[order].bytes_cache,
                parameters=tuple(trace.parameters[index] for index in sorted(parameters_read)),
            )
        )
    return tuple(found)


_NUMBERS_OF_COST = 8  # all attributes of a cost but its parameters


def _cost_numbers(costs: Sequence[Cost]) -> list[Number]:
    return [
        number
        for cost in costs
        for number in (
            cost.flops,
            cost.elementwise_ops,
            cost.causal_skippable_flops,
            cost.bytes_read,
            cost.bytes_written,
            cost.bytes_weights,
            cost.bytes_activations,
            cost.bytes_cache,
        )
    ]


def _costs_with(costs: tuple[Cost, ...], numbers: Sequence[Number]) -> tuple[Cost, ...]:
    """The costs with other numbers, in the order of `_cost_numbers`."""
    rows = zip(*[iter(numbers)] * _NUMBERS_OF_COST, strict=True)
    return tuple(
        Cost(
            flops=flops,
            elementwise_ops=elementwise,
            causal_skippable_flops=skippable or 0,
            bytes_read=read or 0,
            bytes_written=written or 0,
            bytes_weights=weights or 0,
            bytes_activations=activations or 0,
            bytes_cache=cache or 0,
            parameters=cost.parameters,
        )
        for cost, (flops, elementwise, skippable, read, written, weights, activations, cache) in (
            zip(costs, rows, strict=True)
        )
    )


recorded_costs = memoize_numeric(NumericAnalysis(_recorded_costs, _cost_numbers, _costs_with))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the pass; a shared parameter is counted once.

    `active` counts the parameters one token uses. `bytes_weights`, `bytes_activations` and
    `bytes_cache` add up to all bytes read and written.
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
        """FLOPs per byte read or written."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)


def _totals(trace: Trace) -> Totals:
    """The totals of the pass over all its operators."""
    own = [parameter for parameter in trace.parameters if parameter.tied_to is None]
    weights = [parameter for parameter in own if not parameter.is_buffer]
    each = [
        (cost, trace.run_counts[operator]) for operator, cost in enumerate(recorded_costs(trace))
    ]
    return Totals(
        operators=len(trace.steps),
        kernels=_kernel_count(trace),
        parameters=sum(parameter.numel for parameter in weights),
        active=active_parameters(trace),
        trainable=sum(parameter.numel for parameter in weights if parameter.trainable),
        parameter_bytes=sum(parameter.nbytes for parameter in weights),
        buffer_bytes=sum(parameter.nbytes for parameter in own if parameter.is_buffer),
        flops=_flops(trace),
        elementwise_ops=sum((cost.elementwise_ops or 0) * count for cost, count in each),
        causal_skippable_flops=sum(cost.causal_skippable_flops * count for cost, count in each),
        bytes_read=sum(cost.bytes_read * count for cost, count in each),
        bytes_written=sum(cost.bytes_written * count for cost, count in each),
        bytes_weights=sum(cost.bytes_weights for cost in costs(trace)),
        bytes_activations=sum(cost.bytes_activations for cost in costs(trace)),
        bytes_cache=sum(cost.bytes_cache for cost in costs(trace)),
        cache_bytes=sum(slot.nbytes for slot in trace.cache),
    )


def _totals_with(_: Totals, numbers: Sequence[Number]) -> Totals:
    return Totals(**{n: value or 0 for n, value in zip(Totals.__slots__, numbers, strict=True)})


TOTALS = NumericAnalysis(_totals, astuple, _totals_with)
totals = memoize_numeric(TOTALS)


def _kernel_count(trace: Trace) -> int:
    replayed = sum(last - first for first, last in (replay.kernels for replay in trace.replays))
    return len(trace.recorded.kernels) + replayed


def _flops(trace: Trace) -> int:
    return sum(
        (kernel.flops or 0) * (1 if kernel.operator is None else trace.run_counts[kernel.operator])
        for kernel in trace.recorded.kernels
    )


def operator_types(trace: Trace) -> dict[str, int]:
    """The number of operators of each type, most frequent first."""
    counts: dict[str, int] = {}
    for order, operator in enumerate(trace.recorded.operators):
        counts[operator.op] = counts.get(operator.op, 0) + trace.run_counts[order]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
