"""Which layer an operator belongs to, and which layers do the same work."""

from collections.abc import Iterator
from dataclasses import dataclass

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
    stacks = {module.path for module in trace.modules if module.is_list}
    return tuple(_layer(operator.path, stacks) for operator in trace.operators)


def _layer(path: str, stacks: set[str]) -> Layer | None:
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
    groups: dict[tuple[str, object], list[Layer]] = {}
    for layer, orders in members.items():
        signature = tuple(_signature(trace, layer, orders))
        groups.setdefault((layer.stack, signature), []).append(layer)
    return tuple(
        Repeat(group[0], tuple(layer.index for layer in group)) for group in groups.values()
    )


def _signature(trace: Trace, layer: Layer, orders: list[int]) -> Iterator[object]:
    place = {order: position for position, order in enumerate(orders)}
    for order in orders:
        operator = trace.operators[order]
        yield (
            operator.path.removeprefix(layer.path),
            operator.op,
            tuple(trace.shapes(operator.inputs)),
            tuple(trace.shapes(operator.outputs)),
            tuple(place[source] for source in depends_on(trace)[order] if source in place),
            tuple(
                (
                    kernel.name,
                    tuple(trace.shapes(kernel.inputs)),
                    tuple(trace.tensors[index].dtype for index in kernel.inputs),
                )
                for kernel in trace.kernels_of[order]
            ),
        )


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
