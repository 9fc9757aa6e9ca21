"""Formulas in batch and context for shapes, FLOPs and bytes, from traces of many workloads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llmsim_magic.analyses.cost.operator_costs import recorded_costs, totals
from llmsim_magic.analyses.formulas.polynomials import (
    Formula,
    Grid,
    Point,
    formula,
    regime_boundary,
)
from llmsim_magic.analyses.kernels.aliasing import distinct_elements
from llmsim_magic.analyses.kernels.memoize import memoize, memoize_invariant
from llmsim_magic.records.trace.trace import Trace

Traces = Mapping[Point, Trace]
Size = Formula | None  # None if no formula fits
Shape = tuple[Size, ...]
Each = TypeVar("Each")
Key = tuple[str, str, int]  # path, operator name, and index of the call
QUANTITIES = ("flops", "elementwise_ops", "bytes_read", "bytes_written", "activation_bytes")
TOTALS = (
    "flops",
    "elementwise_ops",
    "causal_skippable_flops",
    "bytes_read",
    "bytes_written",
    "cache_bytes",
)


@dataclass(frozen=True, slots=True)
class Regimes:
    """Workloads that determine formulas: `near` for short contexts, `far` for long ones."""

    near: Grid
    far: Grid | None = None


@dataclass(frozen=True, slots=True)
class OperatorFormulas:
    """Formulas of an operator's shapes and quantities.

    `inputs` and `outputs` are None if the number of tensors or their rank varies.
    """

    key: Key
    inputs: tuple[Shape, ...] | None
    outputs: tuple[Shape, ...] | None
    quantities: Mapping[str, Size]

    @property
    def is_complete(self) -> bool:
        """Whether every size and quantity has a formula."""
        sizes = (size for shape in (self.inputs or ()) + (self.outputs or ()) for size in shape)
        return None not in (self.inputs, self.outputs, *sizes, *self.quantities.values())


def operator_formulas(
    traces: Traces, regimes: Regimes, *, only_shapes: bool = False
) -> tuple[OperatorFormulas, ...]:
    """Formulas for every operator of the first trace.

    Args:
        traces: Traces of one model and phase by (batch, context).
        regimes: The workloads that determine the formulas; other traces verify them.
        only_shapes: Whether to skip FLOPs, bytes and elementwise operations.

    Returns:
        Formulas in execution order. An operator that some trace does not run has none.
    """
    if not set(regimes.near.points) <= set(traces):
        return tuple(
            OperatorFormulas(key, None, None, {})
            for key in recorded_operators(next(iter(traces.values())))
        )
    points = tuple(traces)
    quantities = () if only_shapes else QUANTITIES
    orders = [recorded_operators(trace) for trace in traces.values()]
    readings = [_shapes_of(trace) for trace in traces.values()]
    numbers = [_numbers_of(trace) for trace in traces.values()] if quantities else []
    fitted = _fitter(points, regimes)
    known: dict[tuple[int | None, ...], OperatorFormulas] = {}
    found = []
    for key in orders[0]:
        indices = tuple(each.get(key) for each in orders)
        formulas = known.get(indices)
        if formulas is None:
            formulas = known[indices] = (
                OperatorFormulas(key, None, None, dict.fromkeys(quantities))
                if None in indices
                else OperatorFormulas(
                    key,
                    _shapes([each.inputs for each in _chosen(readings, indices)], fitted),
                    _shapes([each.outputs for each in _chosen(readings, indices)], fitted),
                    {
                        name: fitted([each[name] for each in _chosen(numbers, indices)])
                        for name in quantities
                    },
                )
            )
        found.append(OperatorFormulas(key, formulas.inputs, formulas.outputs, formulas.quantities))
    return tuple(found)


def total_formulas(traces: Traces, regimes: Regimes) -> dict[str, Size]:
    """Formulas for the totals of the pass and the bytes of its cache, by name."""
    if not set(regimes.near.points) <= set(traces):
        return dict.fromkeys(TOTALS)
    return {
        name: formula(
            {point: getattr(totals(trace), name) for point, trace in traces.items()},
            regimes.near,
            regimes.far,
        )
        for name in TOTALS
    }


def regime_boundaries(
    found: Sequence[OperatorFormulas], totals: Mapping[str, Size], near: Grid, far: Grid
) -> set[int]:
    """The last context before each long-context regime, over all operators and totals."""
    formulas = {each for operator in found for each in _formulas(operator)}
    formulas |= {size for size in totals.values() if size is not None}
    ends = {regime_boundary(each, near, far) for each in formulas}
    return {end for end in ends if end is not None}


def _formulas(operator: OperatorFormulas) -> Iterator[Formula]:
    shapes = (*(operator.inputs or ()), *(operator.outputs or ()))
    sizes = (*(size for shape in shapes for size in shape), *operator.quantities.values())
    yield from (size for size in sizes if size is not None)


@dataclass(frozen=True, slots=True)
class _OperatorShapes:
    """Shapes of one operator in one trace."""

    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]


@memoize_invariant
def recorded_operators(trace: Trace) -> dict[Key, int]:
    """The recorded operator that each operator of the pass corresponds to, in execution order."""
    seen: dict[tuple[str, str], int] = {}
    found = {}
    names = [operator.op for operator in trace.recorded.operators]
    for path, (operator, _) in zip(trace.paths, trace.steps, strict=True):
        name = names[operator]
        call = seen[path, name] = seen.get((path, name), -1) + 1
        found[path, name, call] = operator
    return found


@memoize
def _shapes_of(trace: Trace) -> tuple[_OperatorShapes, ...]:
    record = trace.recorded
    return tuple(
        _OperatorShapes(record.shapes(operator.inputs), record.shapes(operator.outputs))
        for operator in record.operators
    )


@memoize
def _numbers_of(trace: Trace) -> tuple[dict[str, int | None], ...]:
    """The quantities of each recorded operator, by name."""
    record = trace.recorded
    found = []
    for operator, cost in zip(record.operators, recorded_costs(trace), strict=True):
        quantities: dict[str, int | None] = {n: getattr(cost, n) for n in QUANTITIES[:-1]}
        quantities["activation_bytes"] = sum(
            distinct_elements(record.tensors[index]) * record.tensors[index].itemsize
            for index in operator.outputs
        )
        found.append(quantities)
    return tuple(found)


def _chosen(of_traces: Sequence[Sequence[Each]], indices: Sequence[int | None]) -> list[Each]:
    """What each trace has of one operator, which all of them run."""
    return [own[index] for own, index in zip(of_traces, indices, strict=True) if index is not None]


def _fitter(points: tuple[Point, ...], regimes: Regimes) -> Callable[[Sequence[int | None]], Size]:
    """A function that gives the formula of a number by its values at the points.

    Operators share most of their numbers, so that each is fitted once.
    """
    found: dict[tuple[int | None, ...], Size] = {}

    def fitted(numbers: Sequence[int | None]) -> Size:
        key = tuple(numbers)
        if key not in found:
            known = [number for number in key if number is not None]
            found[key] = (
                formula(dict(zip(points, known, strict=True)), regimes.near, regimes.far)
                if len(known) == len(points)
                else None
            )
        return found[key]

    return fitted


def _shapes(
    each: list[list[tuple[int, ...]]], fitted: Callable[[Sequence[int]], Size]
) -> tuple[Shape, ...] | None:
    """A formula for every size; None if the number of tensors or a rank varies."""
    if len({tuple(map(len, shapes)) for shapes in each}) > 1:
        return None
    return tuple(
        tuple(fitted(sizes) for sizes in zip(*shape, strict=True))
        for shape in zip(*each, strict=True)
    )
