"""Which layer an operator belongs to, and which layers do the same work."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from llmsim_magic.analyses.dataflow import depends_on
from llmsim_magic.analyses.once import once
from llmsim_magic.records.trace import Trace


@dataclass(frozen=True, slots=True)
class Layer:
    """An element of a repeated `ModuleList`: `model.layers`, 3."""

    stack: str
    index: int

    @property
    def path(self) -> str:
        return f"{self.stack}.{self.index}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """Layers of one stack that run the same operators on the same shapes, drawn as the first."""

    first: Layer
    indices: tuple[int, ...]


@once
def layers(trace: Trace) -> tuple[Layer | None, ...]:
    """For each operator the outermost layer it lies in."""
    stacks = frozenset(module.path for module in trace.modules if module.is_list)
    recorded = [_layer(operator.path, stacks) for operator in trace.recorded.operators]
    found: list[Layer | None] = []
    for operator, replay in trace.steps:
        layer = recorded[operator]
        if layer is not None and replay is not None:
            layer = _layer(replay.own(layer.path), stacks)
        found.append(layer)
    return tuple(found)


@lru_cache(maxsize=4096)
def _layer(path: str, stacks: frozenset[str]) -> Layer | None:
    parts = path.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdigit() and stack in stacks:
            return Layer(stack, int(part))
    return None


@once
def repeats(trace: Trace) -> tuple[Repeat, ...]:
    """Groups of layers that are the same work, in the order of their first.

    The same: equal operators in equal order, on equal shapes and weights, each waiting for the
    same ones inside the layer.
    """
    members: dict[Layer, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        if layer is not None:
            members.setdefault(layer, []).append(order)
    works = _works(trace)
    groups: dict[tuple[str, object], list[Layer]] = {}
    for layer, orders in members.items():
        signature = tuple(_signature(trace, layer, orders, works))
        groups.setdefault((layer.stack, signature), []).append(layer)
    return tuple(
        Repeat(group[0], tuple(layer.index for layer in group)) for group in groups.values()
    )


def _signature(
    trace: Trace, layer: Layer, orders: list[int], works: tuple[int, ...]
) -> Iterator[object]:
    place = {order: position for position, order in enumerate(orders)}
    for order in orders:
        yield (
            trace.paths[order].removeprefix(layer.path),
            works[order],
            tuple(place[source] for source in depends_on(trace)[order] if source in place),
        )


def _works(trace: Trace) -> tuple[int, ...]:
    """For each operator a number that those share which run the same kernels on the same shapes."""
    record = trace.recorded
    numbers: dict[object, int] = {}
    found = []
    for operator, kernels in zip(record.operators, record.kernels_of, strict=True):
        work = (
            operator.op,
            tuple(record.shapes(operator.inputs)),
            tuple(record.shapes(operator.outputs)),
            tuple(
                (
                    kernel.name,
                    tuple(record.shapes(kernel.inputs)),
                    tuple(record.tensors[index].dtype for index in kernel.inputs),
                )
                for kernel in kernels
            ),
        )
        found.append(numbers.setdefault(work, len(numbers)))
    return tuple(trace.of_each(found))


@once
def folded(trace: Trace) -> tuple[int, ...]:
    """For each operator the one that stands for it: itself, or its twin in the first such layer."""
    first_of = {
        (repeat.first.stack, index): repeat.first.index
        for repeat in repeats(trace)
        for index in repeat.indices
    }
    members: dict[Layer, list[int]] = {}
    twins = []
    for order, layer in enumerate(layers(trace)):
        if layer is None:
            twins.append(order)
            continue
        mine = members.setdefault(layer, [])
        first = members[Layer(layer.stack, first_of[layer.stack, layer.index])]
        twins.append(first[len(mine)] if first is not mine else order)
        mine.append(order)
    return tuple(twins)
