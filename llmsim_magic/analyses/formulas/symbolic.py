"""Shapes, work and traffic as formulas of batch and context, from traces of several workloads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmsim_magic.analyses.cost.operator_costs import recorded_costs, totals
from llmsim_magic.analyses.formulas.polynomials import Formula, Grid, Point, crossing, formula
from llmsim_magic.analyses.kernels.aliasing import distinct_elements
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.trace import Trace

Traces = Mapping[Point, Trace]
Size = Formula | None  # None where no formula holds
Shape = tuple[Size, ...]
Key = tuple[str, str, int]  # path, operator, and which of its calls
QUANTITIES = ("flops", "elementwise_ops", "bytes_read", "bytes_written", "activation_bytes")
SUMS = (
    "flops",
    "elementwise_ops",
    "causal_skippable_flops",
    "bytes_read",
    "bytes_written",
    "cache_bytes",
)


@dataclass(frozen=True, slots=True)
class Regimes:
    """Where the formulas come from: `near` determines them, `far` those of long contexts."""

    near: Grid
    far: Grid | None = None


@dataclass(frozen=True, slots=True)
class OperatorFormulas:
    """An operator's shapes, None where their number or rank varies, and its quantities."""

    key: Key
    inputs: tuple[Shape, ...] | None
    outputs: tuple[Shape, ...] | None
    quantities: Mapping[str, Size]

    @property
    def is_whole(self) -> bool:
        """Whether there is a formula for everything."""
        sizes = (size for shape in (self.inputs or ()) + (self.outputs or ()) for size in shape)
        return None not in (self.inputs, self.outputs, *sizes, *self.quantities.values())


def operator_formulas(
    traces: Traces, regimes: Regimes, *, only_shapes: bool = False
) -> tuple[OperatorFormulas, ...]:
    """Formulas for every operator of the first trace; one that others do not run has none."""
    if not set(regimes.near.points) <= set(traces):
        return tuple(
            OperatorFormulas(key, None, None, {}) for key in _orders(next(iter(traces.values())))
        )
    points = tuple(traces)
    quantities = () if only_shapes else QUANTITIES
    orders = [_orders(trace) for trace in traces.values()]
    readings = [_readings(trace) for trace in traces.values()]
    known: dict[tuple[int | None, ...], OperatorFormulas] = {}
    found = []
    for key in orders[0]:
        places = tuple(each.get(key) for each in orders)
        alike = known.get(places)
        if alike is None:
            reads = [
                r[place] for r, place in zip(readings, places, strict=True) if place is not None
            ]
            alike = known[places] = _of_operator(key, points, reads, regimes, quantities)
        found.append(OperatorFormulas(key, alike.inputs, alike.outputs, alike.quantities))
    return tuple(found)


def total_formulas(traces: Traces, regimes: Regimes) -> dict[str, Size]:
    """Formulas for the sums over the pass, and the bytes of the cache after it."""
    if not set(regimes.near.points) <= set(traces):
        return dict.fromkeys(SUMS)
    return {
        name: formula(
            {point: getattr(totals(trace), name) for point, trace in traces.items()},
            regimes.near,
            regimes.far,
        )
        for name in SUMS
    }


def borders(
    found: Sequence[OperatorFormulas], sums: Mapping[str, Size], near: Grid, far: Grid
) -> set[int]:
    """The last context before each second regime, of operators and of sums."""
    formulas = {each for operator in found for each in _formulas(operator)}
    formulas |= {size for size in sums.values() if size is not None}
    ends = {crossing(each, near, far) for each in formulas}
    return {end for end in ends if end is not None}


def _formulas(operator: OperatorFormulas) -> Iterator[Formula]:
    shapes = (*(operator.inputs or ()), *(operator.outputs or ()))
    sizes = (*(size for shape in shapes for size in shape), *operator.quantities.values())
    yield from (size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one trace says of one operator."""

    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    quantities: dict[str, int | None]


def _orders(trace: Trace) -> dict[Key, int]:
    """The recorded operator of each operator of the pass."""
    seen: dict[tuple[str, str], int] = {}
    found = {}
    names = [operator.op for operator in trace.recorded.operators]
    for path, (operator, _) in zip(trace.paths, trace.steps, strict=True):
        name = names[operator]
        call = seen[path, name] = seen.get((path, name), -1) + 1
        found[path, name, call] = operator
    return found


@memoize
def _readings(trace: Trace) -> tuple[_Reading, ...]:
    record = trace.recorded
    found = []
    for operator, cost in zip(record.operators, recorded_costs(trace), strict=True):
        quantities = {name: getattr(cost, name) for name in QUANTITIES[:-1]}
        quantities["activation_bytes"] = sum(
            distinct_elements(record.tensors[index]) * record.tensors[index].itemsize
            for index in operator.outputs
        )
        inputs, outputs = record.shapes(operator.inputs), record.shapes(operator.outputs)
        found.append(_Reading(inputs, outputs, quantities))
    return tuple(found)


def _of_operator(
    key: Key,
    points: tuple[Point, ...],
    reads: list[_Reading],
    regimes: Regimes,
    quantities: tuple[str, ...],
) -> OperatorFormulas:
    if len(reads) < len(points):
        return OperatorFormulas(key, None, None, dict.fromkeys(quantities))

    def fitted(numbers: Sequence[int | None]) -> Size:
        known = [number for number in numbers if number is not None]
        if len(known) < len(points):
            return None
        return formula(dict(zip(points, known, strict=True)), regimes.near, regimes.far)

    return OperatorFormulas(
        key,
        _shapes([read.inputs for read in reads], fitted),
        _shapes([read.outputs for read in reads], fitted),
        {name: fitted([read.quantities[name] for read in reads]) for name in quantities},
    )


Result = TypeVar("Result")


def _shapes(
    each: list[list[tuple[int, ...]]], fitted: Callable[[Sequence[int]], Size]
) -> tuple[Shape, ...] | None:
    """A formula for every size; None where the number of tensors or a rank is not always one."""
    if len({tuple(map(len, shapes)) for shapes in each}) > 1:
        return None
    return tuple(
        tuple(fitted(sizes) for sizes in zip(*shape, strict=True))
        for shape in zip(*each, strict=True)
    )
