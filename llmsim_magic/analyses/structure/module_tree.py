"""The modules of a model as a tree in execution order, with identical layers folded into one."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmsim_magic.analyses.graph.layers import index_spans
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.structure.layer_counters import layer_counters
from llmsim_magic.records.trace.trace import Module, Scalar, Trace

_NOT_STRUCTURE = frozenset({"name_or_path"})  # attributes that only say where a model came from


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer of a module; `tied_to` names the parameter that it shares."""

    shape: tuple[int, ...]
    dtype: str
    is_buffer: bool
    tied_to: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module is.

    Attributes:
        path: the path of the module, with the layers around it as ranges: `model.layers.0–27.mlp`.
        indices: of an element of a `ModuleList`, those of the elements that it stands for.
        layer_indices: `indices` of the outermost such element around it; empty outside of layers.
        layers: how many modules it stands for: the product over the elements around it.
    """

    path: str = ""
    indices: tuple[int, ...] = ()
    layer_indices: tuple[int, ...] = ()
    layers: int = 1

    def below(self, name: str, indices: tuple[int, ...]) -> "Place":
        """The place of a module inside; of an element of a `ModuleList` if it has indices."""
        written = index_spans(indices).replace("-", "–") if indices else name
        return Place(
            f"{self.path}.{written}" if self.path else written,
            indices,
            self.layer_indices or indices,
            self.layers * max(1, len(indices)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleNode:
    """A module; an element of a `ModuleList` stands for all elements that are identical to it.

    Attributes:
        name: the last part of its path; of layers the index of the first.
        place: its path, and the layers that it stands for.
        type: its class.
        weights: its own parameters and buffers, by name.
        params: elements of its own parameters; a shared one counts at its first owner.
        params_total: the same, of the module and everything below it.
        attributes: numbers, flags and texts, without those that number the layers.
        counters: names of the attributes that number the layers, such as `layer_idx`.
        children: the modules directly below, in the order in which they run.
        content: equal for modules of one trace that are identical with everything below them.
        size: modules in its tree, itself included.
    """

    name: str
    place: Place
    type: str
    weights: Mapping[str, Weight]
    params: int
    params_total: int
    attributes: Mapping[str, Scalar]
    counters: frozenset[str]
    children: tuple["ModuleNode", ...]
    content: Hashable = field(repr=False)
    size: int

    @property
    def is_layer(self) -> bool:
        """Whether it is an element of a `ModuleList`."""
        return bool(self.place.indices)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its own parameters, by name."""
        return {name: each.shape for name, each in self.weights.items() if not each.is_buffer}


@memoize
def module_tree(trace: Trace) -> ModuleNode:
    """The model of a trace as a tree.

    Elements of a `ModuleList` fold if they have the same classes, weights (names, shapes, dtypes),
    attributes and modules below them. Attributes that number the layers may differ.
    """
    return _Builder(trace).node("", Place())


def at_place(node: ModuleNode, place: Place) -> ModuleNode:
    """A node and everything below it at another place, such as for some of its layers."""
    if place == node.place:
        return node
    return replace(
        node,
        name=str(place.indices[0]) if place.indices else node.name,
        place=place,
        children=tuple(
            at_place(child, place.below(child.name, child.place.indices)) for child in node.children
        ),
    )


class _Builder:
    """Builds nodes from what a trace has of each module."""

    def __init__(self, trace: Trace) -> None:
        self._weights: dict[str, dict[str, Weight]] = {}
        self._params: dict[str, int] = {}
        for p in trace.parameters:
            weight = Weight(p.shape, p.dtype, p.is_buffer, p.tied_to)
            self._weights.setdefault(p.owner, {})[p.name.rpartition(".")[2]] = weight
            if not p.is_buffer and p.tied_to is None:
                self._params[p.owner] = self._params.get(p.owner, 0) + p.numel
        counters = layer_counters(trace)
        self._counters = {m.path: counters.get(m.path, frozenset()) for m in trace.modules}
        self._modules = {module.path: _without_counters(module, self._counters[module.path])
                         for module in trace.modules}  # fmt: skip
        self._children: dict[str, list[str]] = {path: [] for path in self._modules}
        for path in self._modules:
            if path:
                self._children[path.rpartition(".")[0]].append(path)
        self._first_operators = _first_operators(trace)
        self._params_total: dict[str, int] = {}
        self._content: dict[str, Hashable] = {}
        numbers: dict[Hashable, int] = {}
        for path in reversed(self._modules):  # a module precedes what is below it
            below = sum(self._params_total[child] for child in self._children[path])
            self._params_total[path] = self._params.get(path, 0) + below
            self._content[path] = numbers.setdefault(self._full_content(path), len(numbers))

    def node(self, path: str, place: Place) -> ModuleNode:
        """The node of a module, with everything below it."""
        module = self._modules[path]
        children = tuple(
            self.node(child, place.below(_name(child), indices))
            for child, indices in self._folded_children(module)
        )
        return ModuleNode(
            name=_name(path),
            place=place,
            type=module.type,
            weights=self._weights.get(path, {}),
            params=self._params.get(path, 0),
            params_total=self._params_total[path],
            attributes=module.attributes,
            counters=self._counters[path],
            children=children,
            content=self._content[path],
            size=1 + sum(child.size for child in children),
        )

    def _full_content(self, path: str) -> Hashable:
        """What has to be equal in identical modules."""
        module = self._modules[path]
        weights = self._weights.get(path, {})
        return (
            module.type,
            tuple((name, w.shape, w.dtype, w.tied_to is None) for name, w in weights.items()),
            tuple(module.attributes.items()),
            tuple((_name(child), self._content[child]) for child in self._children[path]),
        )

    def _folded_children(self, module: Module) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The modules directly below, in the order in which they run.

        Identical layers are one, the first, with the indices of all.
        """
        groups: dict[Hashable, list[str]] = {}
        for child in self._in_order(module.path):
            is_layer = module.is_list and _name(child).isdecimal()
            groups.setdefault(self._content[child] if is_layer else child, []).append(child)
        for key, group in groups.items():
            indices = sorted(int(_name(child)) for child in group) if key != group[0] else []
            yield group[0], tuple(indices)

    def _in_order(self, path: str) -> list[str]:
        """The modules directly below by their first operator; one without follows its sibling."""
        first: dict[str, int] = {}
        last = -1
        for child in self._children[path]:
            last = first[child] = self._first_operators.get(child, last)
        return sorted(first, key=first.__getitem__)


def _without_counters(module: Module, counters: frozenset[str]) -> Module:
    left_out = (counters | _NOT_STRUCTURE) & module.attributes.keys()
    if not left_out:
        return module
    kept = {name: value for name, value in module.attributes.items() if name not in left_out}
    return replace(module, attributes=kept)


def _first_operators(trace: Trace) -> dict[str, int]:
    """The first operator of the pass in each module that runs any."""
    found: dict[str, int] = {}
    for order, operator_path in enumerate(trace.paths):
        path = operator_path
        while path and path not in found:
            found[path] = order
            path = path.rpartition(".")[0]
    return found


def _name(path: str) -> str:
    return path.rpartition(".")[2]
