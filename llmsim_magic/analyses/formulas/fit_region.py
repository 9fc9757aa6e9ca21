"""Fit the formulas of a region through traces of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from llmsim_magic.analyses.formulas.interpolation import ExactPolynomial, interpolations
from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.formulas.region_analyses import Rectangle
from llmsim_magic.analyses.formulas.symbolic_trace import Pairs, Region
from llmsim_magic.records.trace.recorded import Tensor
from llmsim_magic.records.trace.trace import Trace


class Reading:
    """A trace as its structure and the numbers that a workload may change."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.structure = _structure(trace)
        self.numbers = tuple(_numbers(trace))


def fit_region(readings: Mapping[Point, Reading]) -> Region | None:
    """The formulas through all traces of some workloads; None if there are none.

    Args:
        readings: Traces of one model and phase by (batch, context): some determine the formulas,
            the others check them.
    """
    ways = interpolations(readings)
    each = list(readings.values())
    template = each[0].trace
    if not ways or any(other.structure != each[0].structure for other in each[1:]):
        return None
    columns = _Columns(len(each))
    rows = [reading.numbers for reading in each]
    layout = _Layout(template, columns, list(zip(*rows, strict=True)))
    polynomials: list[ExactPolynomial] = []
    for values in columns.varying:
        found = next((p for way in ways if (p := way.fit(values)) is not None), None)
        if found is None:
            return None
        polynomials.append(found)
    number = columns.numbers()
    return Region(
        template=template,
        rectangles=_rectangles(readings),
        constants=tuple(columns.constants),
        polynomials=tuple(polynomials),
        shapes=tuple(tuple(number[value] for value in shape) for shape in layout.shapes),
        storages=tuple((index, number[nbytes]) for index, nbytes in layout.storages),
        tensors=tuple((i, shape, number[o], strides) for i, shape, o, strides in layout.tensors),
        kernels=tuple((index, number[flops]) for index, flops in layout.kernels),
        cache=tuple((index, shape, number[n]) for index, shape, n in layout.cache),
        collisions=_collisions(template, layout, number, len(columns.constants)),
    )


def extended(region: Region, points: Iterable[Point]) -> Region:
    """The region with the rectangles between workloads at which its formulas were checked."""
    found = {*region.rectangles, *_rectangles(points)}
    return replace(region, rectangles=tuple(sorted(found)))


def _rectangles(points: Iterable[Point]) -> tuple[Rectangle, ...]:
    """The largest rectangles whose corners are among the points.

    What grows with the batch and the context, such as a number of tokens, crosses no threshold
    inside a rectangle unless a corner shows it.
    """
    known = set(points)
    batches, contexts = (sorted({point[axis] for point in known}) for axis in (0, 1))
    found = [
        (least, most, shortest, longest)
        for least in batches
        for most in batches
        for shortest in contexts
        for longest in contexts
        if least <= most
        and shortest <= longest
        and {(least, shortest), (least, longest), (most, shortest), (most, longest)} <= known
    ]
    return tuple(each for each in found if not any(_inside(each, other) for other in found))


def _inside(inner: Rectangle, outer: Rectangle) -> bool:
    return inner != outer and (
        outer[0] <= inner[0]
        and inner[1] <= outer[1]
        and outer[2] <= inner[2]
        and inner[3] <= outer[3]
    )


def _structure(trace: Trace) -> tuple[object, ...]:
    """Everything in a trace but the numbers that `_numbers` lists and the workload's size."""
    record = trace.recorded
    return (
        trace.workload.phase,
        trace.replays,
        trace.notes,
        trace.ignores_context,
        record.operators,
        record.calls,
        record.results,
        [(storage.role, storage.name) for storage in record.storages],
        [(t.dtype, t.itemsize, t.storage, len(t.shape), len(t.strides)) for t in record.tensors],
        [
            (k.name, k.operator, k.inputs, k.outputs, k.writes, k.is_view, k.pointwise, k.causal)
            for k in record.kernels
        ],
        [(k.flops is None, k.held) for k in record.kernels],
        [(slot.name, slot.dtype, len(slot.shape)) for slot in trace.cache],
        trace.model,
        trace.versions,
        trace.modules,
        trace.parameters,
    )


def _numbers(trace: Trace) -> Iterator[int]:
    """The numbers of a trace that a workload may change, in a fixed order."""
    record = trace.recorded
    for storage in record.storages:
        yield storage.nbytes
    for tensor in record.tensors:
        yield from tensor.shape
        yield tensor.offset
        yield from tensor.strides
    for kernel in record.kernels:
        yield kernel.flops or 0
    for slot in trace.cache:
        yield from slot.shape
        yield slot.nbytes


class _Columns:
    """Distinct values over the traces; each is a tuple of one number per trace."""

    def __init__(self, traces: int) -> None:
        self.constants: list[int] = []
        self.varying: list[tuple[int, ...]] = []
        self._traces = traces
        self._seen: dict[tuple[int, ...], tuple[bool, int]] = {}

    def add(self, column: tuple[int, ...]) -> tuple[bool, int]:
        """Whether the value varies, and its place among the constants or the varying ones."""
        known = self._seen.get(column)
        if known is None:
            if column.count(column[0]) == self._traces:
                known = (False, len(self.constants))
                self.constants.append(column[0])
            else:
                known = (True, len(self.varying))
                self.varying.append(column)
            self._seen[column] = known
        return known

    def numbers(self) -> dict[tuple[bool, int], int]:
        """The number of each value: constants first."""
        first = len(self.constants)
        return {place: place[1] + first if place[0] else place[1] for place in self._seen.values()}


Value = tuple[bool, int]


class _Layout:
    """The places in a template whose numbers vary."""

    def __init__(self, template: Trace, columns: _Columns, each: Sequence[tuple[int, ...]]) -> None:
        self.shapes: dict[tuple[Value, ...], int] = {}
        self.storages: list[tuple[int, Value]] = []
        self.tensors: list[tuple[int, int, Value, int]] = []
        self.kernels: list[tuple[int, Value]] = []
        self.cache: list[tuple[int, int, Value]] = []
        self.views: dict[tuple[int, str, int], list[tuple[Value, ...]]] = {}
        self._columns = columns
        self._each = iter(each)
        record = template.recorded
        for index, _ in enumerate(record.storages):
            self._add_storage(index)
        for index, tensor in enumerate(record.tensors):
            self._add_tensor(index, tensor)
        for index, _ in enumerate(record.kernels):
            (flops,) = self._next(1)
            if flops[0]:
                self.kernels.append((index, flops))
        for index, slot in enumerate(template.cache):
            shape, (nbytes,) = self._next(len(slot.shape)), self._next(1)
            if any(value[0] for value in (*shape, nbytes)):
                self.cache.append((index, self._shape(shape), nbytes))

    def _add_storage(self, index: int) -> None:
        (nbytes,) = self._next(1)
        if nbytes[0]:
            self.storages.append((index, nbytes))

    def _add_tensor(self, index: int, tensor: Tensor) -> None:
        shape, (offset,) = self._next(len(tensor.shape)), self._next(1)
        strides = self._next(len(tensor.strides))
        sizes = (*shape, offset, *strides)
        self.views.setdefault((tensor.storage, tensor.dtype, len(sizes)), []).append(sizes)
        if any(value[0] for value in sizes):
            self.tensors.append((index, self._shape(shape), offset, self._shape(strides)))

    def _next(self, count: int) -> tuple[Value, ...]:
        return tuple([self._columns.add(next(self._each)) for _ in range(count)])

    def _shape(self, shape: tuple[Value, ...]) -> int:
        return self.shapes.setdefault(shape, len(self.shapes))


def _collisions(
    template: Trace, layout: _Layout, number: Mapping[Value, int], constants: int
) -> tuple[Pairs, ...]:
    """The distinct conditions under which two tensors of a storage would be the same view."""
    found: dict[Pairs, None] = {}
    for views in layout.views.values():
        for one, other in combinations(views, 2):
            pairs = sorted(
                {
                    (min(number[a], number[b]), max(number[a], number[b]))
                    for a, b in zip(one, other, strict=True)
                    if a != b
                }
            )
            differ = any(b < constants for _, b in pairs)  # two distinct constants
            if pairs and not differ:
                found[tuple(pairs)] = None
    return tuple(found)
