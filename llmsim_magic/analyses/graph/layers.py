"""Which layer an operator belongs to, and which layers do the same work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from llmsim_magic.analyses.graph.dataflow import depends_on
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.selection import Unfolded
from llmsim_magic.records.trace.trace import Module, Trace

_DEEPEST = 1_000  # attributes tell less than any class


@dataclass(frozen=True, slots=True)
class Layer:
    """An element of a repeated `ModuleList`: `model.layers`, 3."""

    stack: str
    index: int

    @property
    def path(self) -> str:
        return f"{self.stack}.{self.index}" if self.stack else str(self.index)


@dataclass(frozen=True, slots=True)
class Repeat:
    """Layers of one stack that run the same operators on the same shapes, drawn as the first."""

    first: Layer
    indices: tuple[int, ...]


@memoize
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


@memoize
def repeats(trace: Trace) -> tuple[Repeat, ...]:
    """Groups of layers that are the same work, in the order of their first.

    The same: equal operators in equal order, on equal shapes and weights, each waiting for the
    same ones inside the layer and for the same of those outside that serve several layers, such
    as a mask.
    """
    members: dict[Layer, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        if layer is not None:
            members.setdefault(layer, []).append(order)
    works, served = _works(trace), _served(trace)
    groups: dict[tuple[str, object], list[Layer]] = {}
    for layer, orders in members.items():
        signature = tuple(_signature(trace, layer, orders, works, served))
        groups.setdefault((layer.stack, signature), []).append(layer)
    return tuple(
        Repeat(group[0], tuple(layer.index for layer in group)) for group in groups.values()
    )


def _signature(
    trace: Trace, layer: Layer, orders: list[int], works: tuple[int, ...], served: frozenset[int]
) -> Iterator[object]:
    place = {order: position for position, order in enumerate(orders)}
    for order in orders:
        yield (
            trace.paths[order].removeprefix(layer.path),
            works[order],
            tuple(place[source] for source in depends_on(trace)[order] if source in place),
            tuple(source for source in depends_on(trace)[order] if source in served),
        )


def _served(trace: Trace) -> frozenset[int]:
    """Operators outside of layers that several layers wait for."""
    readers: dict[int, set[Layer]] = {}
    for order, layer in enumerate(layers(trace)):
        for source in depends_on(trace)[order] if layer else ():
            if layers(trace)[source] is None and layer is not None:
                readers.setdefault(source, set()).add(layer)
    return frozenset(source for source, found in readers.items() if len(found) > 1)


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


def apart(trace: Trace, unfolded: Unfolded) -> tuple[Repeat, ...]:
    """The same groups, with the layers of these indices, or all layers, by themselves.

    Raises `InvalidValue` for an index that no layer has.
    """
    known = {index for repeat in repeats(trace) for index in repeat.indices}
    if unfolded != "all" and not known.issuperset(unfolded):
        asked, last = ",".join(map(str, sorted(unfolded))), max(known, default=None)
        legal = "nothing: there are no layers" if last is None else f"all, or indices up to {last}"
        raise InvalidValue.must_be("layers", asked, legal)
    found: list[Repeat] = []
    for repeat in repeats(trace):
        alone = [i for i in repeat.indices if unfolded == "all" or i in unfolded]
        rest = tuple(i for i in repeat.indices if i not in set(alone))
        stack = repeat.first.stack
        found += (Repeat(Layer(stack, index), (index,)) for index in alone)
        if rest:
            found.append(Repeat(Layer(stack, rest[0]), rest))
    return tuple(found)


def folded(trace: Trace, groups: Iterable[Repeat]) -> tuple[int, ...]:
    """For each operator the one that stands for it: itself, or its twin in its group's first."""
    first_of = {
        (group.first.stack, index): group.first.index for group in groups for index in group.indices
    }
    members: dict[Layer, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        if layer is not None:
            members.setdefault(layer, []).append(order)
    twins = list(range(len(trace.steps)))
    for layer, mine in members.items():
        first = members[Layer(layer.stack, first_of[layer.stack, layer.index])]
        for order, twin in zip(mine, first, strict=True):
            twins[order] = twin
    return tuple(twins)


def differences(trace: Trace, groups: Iterable[Repeat]) -> dict[Layer, str]:
    """What tells the first layer of each group from those of other kinds in its stack.

    The class of the outermost part in which they differ, or else an attribute: `mlp: MixtralMoE`.
    """
    made = {module.path: module for module in trace.modules}
    kinds: dict[str, list[Layer]] = {}
    for repeat in repeats(trace):
        kinds.setdefault(repeat.first.stack, []).append(repeat.first)
    facts = {layer: _facts(layer, made) for firsts in kinds.values() for layer in firsts}
    found: dict[Layer, str] = {}
    for group in groups:
        alike = next(
            repeat.first
            for repeat in repeats(trace)
            if repeat.first.stack == group.first.stack and group.first.index in repeat.indices
        )
        others = [facts[other] for other in kinds[group.first.stack] if other != alike]
        mine = facts[alike]
        telling = (
            place for place in mine if any(other.get(place) != mine[place] for other in others)
        )
        place = next(telling, None)
        if place is not None:
            found[group.first] = f"{place[1]}: {mine[place]}"
    return found


def _facts(layer: Layer, made: Mapping[str, Module]) -> dict[tuple[int, str], object]:
    """The classes of a layer's parts, outermost first, and then their attributes."""
    inside = {
        path.removeprefix(f"{layer.path}."): module
        for path, module in made.items()
        if path.startswith(f"{layer.path}.")
    }
    found: dict[tuple[int, str], object] = {
        (path.count("."), path): inside[path].type
        for path in sorted(inside, key=lambda path: (path.count("."), path))
    }
    for path, module in {"": made[layer.path], **inside}.items():
        for name, value in module.attributes.items():
            if type(value) is not int or value != layer.index:
                found[_DEEPEST, name if not path else f"{path}.{name}"] = value
    return found


def index_spans(indices: Sequence[int]) -> str:
    """`0-2, 5`."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    written = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ", ".join(written if len(written) <= 4 else [*written[:2], "…", written[-1]])
