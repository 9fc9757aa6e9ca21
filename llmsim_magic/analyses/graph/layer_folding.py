"""Which layers do identical work, so that a graph can draw one for all of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmsim_magic.analyses.graph.dataflow import depends_on
from llmsim_magic.analyses.graph.layers import Layer, layers, operators_by_layer
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.selection import Unfolded
from llmsim_magic.records.trace.trace import Module, Trace

_ATTRIBUTE_DEPTH = 1_000  # sorts attributes after classes, which have their real depth


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of one stack that run the same operators on the same shapes, drawn as the first.

    `indices` are in execution order.
    """

    first: Layer
    indices: tuple[int, ...]


@memoize
def identical_layers(trace: Trace) -> tuple[LayerGroup, ...]:
    """Groups of layers that do identical work, ordered by their first layer.

    Two layers are identical if they run the same operators in the same order on the same shapes
    and weights, and each operator depends on the same operators inside the layer and on the same
    shared operators outside of it, such as an attention mask.
    """
    works, shared = _work_ids(trace), _shared_sources(trace)
    groups: dict[tuple[str, object], list[Layer]] = {}
    for layer, orders in operators_by_layer(trace).items():
        signature = tuple(_signature(trace, layer, orders, works, shared))
        groups.setdefault((layer.stack, signature), []).append(layer)
    return tuple(
        LayerGroup(group[0], tuple(layer.index for layer in group)) for group in groups.values()
    )


def _signature(
    trace: Trace, layer: Layer, orders: list[int], works: tuple[int, ...], shared: frozenset[int]
) -> Iterator[object]:
    position_of = {order: position for position, order in enumerate(orders)}
    for order in orders:
        sources = depends_on(trace)[order]
        yield (
            trace.paths[order].removeprefix(layer.path),
            works[order],
            tuple(position_of[source] for source in sources if source in position_of),
            tuple(source for source in sources if source in shared),
        )


def _shared_sources(trace: Trace) -> frozenset[int]:
    """Operators outside of layers that more than one layer of a stack depends on."""
    readers: dict[tuple[int, str], set[Layer]] = {}
    for order, layer in enumerate(layers(trace)):
        for source in depends_on(trace)[order] if layer else ():
            if layers(trace)[source] is None and layer is not None:
                readers.setdefault((source, layer.stack), set()).add(layer)
    return frozenset(source for (source, _), found in readers.items() if len(found) > 1)


def _work_ids(trace: Trace) -> tuple[int, ...]:
    """A number for each operator, equal if the kernels and their shapes are equal."""
    record = trace.recorded
    ids: dict[object, int] = {}
    found = []
    for operator, kernels in zip(record.operators, record.kernels_by_operator, strict=True):
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
        found.append(ids.setdefault(work, len(ids)))
    return tuple(trace.expand_replays(found))


def layer_groups(trace: Trace, unfolded: Unfolded) -> tuple[LayerGroup, ...]:
    """Groups of identical layers, with the unfolded layers in groups by themselves.

    Args:
        trace: The pass to group.
        unfolded: Indices of the layers to keep separate, or "all".

    Raises:
        InvalidValue: If no layer has one of the indices.
    """
    known = {index for group in identical_layers(trace) for index in group.indices}
    if unfolded != "all" and not known.issuperset(unfolded):
        asked, last = ",".join(map(str, sorted(unfolded))), max(known, default=None)
        if last is None:
            raise InvalidValue(f"layers cannot be {asked}: the model has no repeated layers")
        raise InvalidValue(
            f"layers: the model has layers 0 to {last}, and not {asked}; choose among these, or all"
        )
    found: list[LayerGroup] = []
    for group in identical_layers(trace):
        separate = [i for i in group.indices if unfolded == "all" or i in unfolded]
        rest = tuple(i for i in group.indices if i not in set(separate))
        stack = group.first.stack
        found += (LayerGroup(Layer(stack, index), (index,)) for index in separate)
        if rest:
            found.append(LayerGroup(Layer(stack, rest[0]), rest))
    return tuple(found)


def representatives(trace: Trace, groups: Iterable[LayerGroup]) -> tuple[int, ...]:
    """For each operator its counterpart in the first layer of its group; itself elsewhere."""
    first_of = {
        (group.first.stack, index): group.first.index for group in groups for index in group.indices
    }
    members = operators_by_layer(trace)
    found = list(range(len(trace.steps)))
    for layer, orders in members.items():
        first = members[Layer(layer.stack, first_of[layer.stack, layer.index])]
        for order, counterpart in zip(orders, first, strict=True):
            found[order] = counterpart
    return tuple(found)


def distinguishing_features(trace: Trace, groups: Iterable[LayerGroup]) -> dict[Layer, str]:
    """How the first layer of each group differs from the other kinds of layers in its stack.

    The class of the outermost submodule that differs, such as `mlp: MixtralMoE`, or a module
    attribute if all classes are the same.
    """
    modules = {module.path: module for module in trace.modules}
    kinds: dict[str, list[Layer]] = {}
    for group in identical_layers(trace):
        kinds.setdefault(group.first.stack, []).append(group.first)
    features = {layer: _features(layer, modules) for firsts in kinds.values() for layer in firsts}
    found: dict[Layer, str] = {}
    for group in groups:
        kind = next(
            identical.first
            for identical in identical_layers(trace)
            if identical.first.stack == group.first.stack and group.first.index in identical.indices
        )
        own = features[kind]
        others = [features[other] for other in kinds[group.first.stack] if other != kind]
        key = next((k for k in own if any(other.get(k) != own[k] for other in others)), None)
        if key is not None:
            found[group.first] = f"{key[1]}: {own[key]}"
    return found


def _features(layer: Layer, modules: Mapping[str, Module]) -> dict[tuple[int, str], object]:
    """The classes of a layer's submodules, outermost first, followed by their attributes."""
    inside = {
        path.removeprefix(f"{layer.path}."): module
        for path, module in modules.items()
        if path.startswith(f"{layer.path}.")
    }
    found: dict[tuple[int, str], object] = {
        (path.count("."), path): inside[path].type
        for path in sorted(inside, key=lambda path: (path.count("."), path))
    }
    for path, module in {"": modules[layer.path], **inside}.items():
        for name, value in module.attributes.items():
            if type(value) is not int or value != layer.index:
                found[_ATTRIBUTE_DEPTH, name if not path else f"{path}.{name}"] = value
    return found
