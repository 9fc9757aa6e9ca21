"""Traces of one model and phase as formulas, evaluated instead of traced.

Within a region of batches and contexts the passes of a model have the same structure, and every
number in their records is a polynomial in the batch and the context. Sizes of 1 change strides,
and a window changes the polynomials, so a phase has several regions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

from llmsim_magic.analyses.formulas.interpolation import ExactPolynomial
from llmsim_magic.analyses.formulas.region_analyses import Rectangle, RegionAnalyses
from llmsim_magic.analyses.kernels.memoize import join_family
from llmsim_magic.records.trace.recorded import Kernel, Record, Storage, Tensor
from llmsim_magic.records.trace.trace import CacheSlot, Trace
from llmsim_magic.records.trace.workload import Workload

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Region:
    """Passes of one structure, as a template and formulas for the numbers in it.

    A value is numbered: first the constants, then the polynomials. `shapes` are tuples of value
    numbers, for shapes and strides. The remaining attributes have the places in the template whose
    numbers vary.

    Attributes:
        template: one of the passes.
        rectangles: batches and contexts in which the formulas were checked, corners included.
        constants: values that are the same in all passes.
        polynomials: values that depend on the batch or the context.
        shapes: distinct shapes and strides.
        storages: storage and the value of its bytes.
        tensors: tensor, its shape, the value of its offset, its strides.
        kernels: kernel and the value of its FLOPs.
        cache: cache slot, its shape and the value of its bytes.
        collisions: pairs of values; where all pairs of one are equal, two tensors coincide, and a
            pass numbers its tensors in another way.
    """

    template: Trace
    rectangles: tuple[Rectangle, ...]
    constants: tuple[int, ...]
    polynomials: tuple[ExactPolynomial, ...]
    shapes: tuple[tuple[int, ...], ...]
    storages: tuple[tuple[int, int], ...]
    tensors: tuple[tuple[int, int, int, int], ...]
    kernels: tuple[tuple[int, int], ...]
    cache: tuple[tuple[int, int, int], ...]
    collisions: tuple[Pairs, ...]

    def contains(self, batch: int, context: int) -> bool:
        """Whether the formulas were checked on all sides of a workload."""
        return any(
            least <= batch <= most and shortest <= context <= longest
            for least, most, shortest, longest in self.rectangles
        )

    def has_valid_indices(self) -> bool:
        """Whether every number of a value, a shape or a place in the template exists."""
        record, values = self.template.recorded, len(self.constants) + len(self.polynomials)
        shapes = [shape for _, shape, _, strides in self.tensors for shape in (shape, strides)]
        numbers = [number for shape in self.shapes for number in shape]
        numbers += [number for row in (*self.storages, *self.kernels) for number in row[1:]]
        numbers += [offset for _, _, offset, _ in self.tensors]
        numbers += [nbytes for _, _, nbytes in self.cache]
        numbers += [number for pairs in self.collisions for pair in pairs for number in pair]
        return (
            _are_below(values, numbers)
            and _are_below(len(self.shapes), [*shapes, *(shape for _, shape, _ in self.cache)])
            and _are_below(len(record.storages), [row[0] for row in self.storages])
            and _are_below(len(record.tensors), [row[0] for row in self.tensors])
            and _are_below(len(record.kernels), [row[0] for row in self.kernels])
            and _are_below(len(self.template.cache), [row[0] for row in self.cache])
            and all(polynomial.denominator > 0 for polynomial in self.polynomials)
        )

    def fits(self, batch: int, context: int) -> bool:
        """Whether `evaluate` gives a trace."""
        values = self._values(batch, context)
        return values is not None and not self._collides(values)

    def evaluate(self, batch: int, context: int) -> Trace | None:
        """The trace of a workload, wherever it is; None if the template cannot have it."""
        values = self._values(batch, context)
        if values is None or self._collides(values):
            return None
        shapes = [shape(values) for shape in self._shape_getters]
        template = self.template
        record, workload = template.recorded, template.workload
        storages, tensors = list(record.storages), list(record.tensors)
        for index, role, name, nbytes in self._varying_storages:
            storages[index] = Storage(values[nbytes], role, name)
        for index, dtype, itemsize, storage, shape, offset, strides in self._varying_tensors:
            tensors[index] = Tensor(
                shapes[shape], dtype, itemsize, storage, values[offset], shapes[strides]
            )
        kernels = list(record.kernels)
        for index, flops in self.kernels:
            kernels[index] = _with_flops(kernels[index], values[flops])
        cache = list(template.cache)
        for index, shape, nbytes in self.cache:
            slot = cache[index]
            cache[index] = CacheSlot(slot.name, shapes[shape], slot.dtype, values[nbytes])
        trace = Trace(
            model=template.model,
            workload=Workload(workload.phase, batch, context),
            modules=template.modules,
            parameters=template.parameters,
            recorded=Record(
                storages=tuple(storages),
                tensors=tuple(tensors),
                kernels=tuple(kernels),
                operators=record.operators,
                calls=record.calls,
                results=record.results,
            ),
            replays=template.replays,
            cache=tuple(cache),
            notes=template.notes,
            versions=template.versions,
            ignores_context=template.ignores_context,
        )
        # Both follow from the operators and the replays, which are those of the template.
        vars(trace).update(steps=template.steps, paths=template.paths)
        join_family(trace, self.analyses)
        return trace

    @cached_property
    def analyses(self) -> RegionAnalyses:
        """What is known of all traces of the region."""
        return RegionAnalyses(self)

    def _values(self, batch: int, context: int) -> list[int] | None:
        """All values; None if one is no whole number or negative."""
        values = list(self.constants)
        for polynomial in self.polynomials:
            value = polynomial.at(batch, context)
            if value is None or value < 0:
                return None
            values.append(value)
        return values

    def _collides(self, values: Sequence[int]) -> bool:
        return any(all(values[a] == values[b] for a, b in pairs) for pairs in self.collisions)

    @cached_property
    def _shape_getters(self) -> list[Callable[[Sequence[int]], tuple[int, ...]]]:
        return [_getter(shape) for shape in self.shapes]

    @cached_property
    def _varying_storages(self) -> list[tuple[int, Any, str | None, int]]:
        storages = self.template.recorded.storages
        return [(i, storages[i].role, storages[i].name, nbytes) for i, nbytes in self.storages]

    @cached_property
    def _varying_tensors(self) -> list[tuple[int, str, int, int, int, int, int]]:
        tensors = self.template.recorded.tensors
        return [
            (i, tensors[i].dtype, tensors[i].itemsize, tensors[i].storage, shape, offset, strides)
            for i, shape, offset, strides in self.tensors
        ]


def _are_below(length: int, numbers: Sequence[int]) -> bool:
    return not numbers or (min(numbers) >= 0 and max(numbers) < length)


def _getter(shape: tuple[int, ...]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    if not shape:
        return lambda _: ()
    if len(shape) == 1:
        (only,) = shape
        return lambda values: (values[only],)
    return itemgetter(*shape)


def _with_flops(kernel: Kernel, flops: int) -> Kernel:
    return Kernel(
        kernel.name,
        kernel.operator,
        kernel.inputs,
        kernel.outputs,
        kernel.writes,
        kernel.is_view,
        kernel.pointwise,
        kernel.causal,
        flops,
        kernel.held,
    )


@dataclass(frozen=True, kw_only=True)
class SymbolicTrace:
    """The traces of one model and phase as formulas; plain data that msgspec encodes.

    Attributes:
        regions: where formulas hold.
        unchecked: contexts next to which the model may behave in another way, according to its
            config, and at which no formula was checked.
    """

    regions: tuple[Region, ...]
    unchecked: frozenset[int] = frozenset()

    def evaluate(self, workload: Workload) -> Trace | None:
        """The trace of a workload of this phase; None where it is not proven.

        It equals the trace of the pass in every record.
        """
        region = self.region(workload)
        return None if region is None else region.evaluate(workload.batch, workload.context)

    def region(self, workload: Workload) -> Region | None:
        """The region of a workload; None where nothing is proven."""
        if workload.context in self.unchecked:
            return None
        for region in self.regions:
            if region.template.workload.phase == workload.phase and region.contains(
                workload.batch, workload.context
            ):
                return region
        return None

    def confirmed(self, trace: Trace) -> "SymbolicTrace":
        """The same, with the context of a pass checked if the formulas give this trace of it."""
        context = trace.workload.context
        checked = replace(self, unchecked=self.unchecked - {context})
        return checked if checked.evaluate(trace.workload) == trace else self
