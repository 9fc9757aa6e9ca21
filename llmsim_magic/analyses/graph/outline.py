"""The nodes and edges that a drawing of a pass shows, with identical layers folded.

Identical layers are folded into the first of them, and modules are collapsed below a depth. Every
edge of the pass is either inside a node or drawn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llmsim_magic.analyses.graph.dataflow import SAVED, Edge, edges
from llmsim_magic.analyses.graph.layer_folding import (
    LayerGroup,
    distinguishing_features,
    layer_groups,
    representatives,
)
from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.analyses.graph.residuals import is_residual
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.records.trace.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace.trace import Trace

EdgeKind = Literal["tensor", "residual", "cache", "saved", "gradient", "next layer"]
MAX_NODES = 40  # nodes that fit on a screen
MIN_NODES = 12


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, or a collapsed module with all its operators.

    `box` is the path of the module whose box contains the node.
    """

    orders: tuple[int, ...]
    collapsed: str | None
    box: str

    @property
    def order(self) -> int:
        """The order of its first operator, which identifies the node."""
        return self.orders[0]


@dataclass(frozen=True, slots=True)
class OutlineEdge:
    """A drawn edge: tensors that the target node reads from the source node.

    A `residual` edge bypasses other operators on the way from source to target. A `next layer`
    edge leads from a folded layer to the layer after it, which is drawn as the same node. In a
    training step, a `saved` edge leads from forward to backward, and a `gradient` edge has the
    gradient of a parameter.
    `tensors` index the recorded tensors.
    """

    source: int
    target: int
    kind: EdgeKind
    tensors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """A tensor that existed before the pass: an input, or the cache."""

    name: str
    tensor: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Nodes in execution order, the edges between them, and the groups of folded layers.

    `node_of` has the node's order for each operator of the pass; None for an operator that is not
    drawn. `groups` and `distinguishing` are keyed by the path of the group's first layer.
    """

    nodes: tuple[Node, ...]
    node_of: tuple[int | None, ...]
    edges: tuple[OutlineEdge, ...]
    inputs: tuple[ExternalTensor, ...]
    groups: dict[str, LayerGroup]
    distinguishing: dict[str, str]

    def group_of(self, path: str) -> str | None:
        """The path of the folded layer that contains a module."""
        return next((box for box in boxes(path) if box in self.groups), None)


def outline(trace: Trace, selection: Selection) -> Outline:
    """The nodes and edges to draw for a pass.

    Args:
        trace: The pass to draw.
        selection: Depth of opened modules, unfolded layers, and level of detail.

    Raises:
        InvalidValue: If the selection names a layer that the model does not have.
    """
    groups = layer_groups(trace, selection.layers)
    counterparts = representatives(trace, groups)
    collapser = _Collapser(trace, selection.depth, selection.level)
    node_of, collapsed_as = _assign_nodes(trace, counterparts, collapser)
    members: dict[int, list[int]] = {node: [] for node in collapsed_as}
    for order, node in enumerate(node_of):
        if node is not None and counterparts[order] == order:
            members[node].append(order)
    features = distinguishing_features(trace, groups)
    return Outline(
        nodes=tuple(
            Node(tuple(members[node]), collapsed, collapser.box(node, collapsed))
            for node, collapsed in collapsed_as.items()
        ),
        node_of=tuple(node_of),
        edges=tuple(_drawn_edges(trace, groups, counterparts, node_of)),
        inputs=tuple(_external_tensors(trace, counterparts, node_of)),
        groups={group.first.path: group for group in groups},
        distinguishing={layer.path: feature for layer, feature in features.items()},
    )


def default_depth(trace: Trace, unfolded: Unfolded = ()) -> int | None:
    """The depth at which a drawing fits on a screen; None if the whole drawing fits."""
    counterparts = representatives(trace, layer_groups(trace, unfolded))
    deepest = max((path.count(".") + 1 for path in trace.paths), default=1)
    counts = {
        depth: len(_assign_nodes(trace, counterparts, _Collapser(trace, depth, "operator"))[1])
        for depth in range(1, deepest + 2)
    }
    if counts[deepest + 1] <= MAX_NODES:
        return None
    fitting = max((depth for depth in counts if counts[depth] <= MAX_NODES), default=1)
    too_few = counts[fitting] < MIN_NODES and counts[fitting + 1] <= 2 * MAX_NODES
    return fitting + 1 if too_few else fitting


def _assign_nodes(
    trace: Trace, counterparts: Sequence[int], collapser: "_Collapser"
) -> tuple[list[int | None], dict[int, str | None]]:
    """The node of each operator, and the collapsed module of each node (None for an operator)."""
    first_order: dict[str, int] = {}
    collapsed_as: dict[int, str | None] = {}
    node_of: list[int | None] = []
    for order, counterpart in enumerate(counterparts):
        if order != counterpart:
            node_of.append(node_of[counterpart])
            continue
        collapsed = collapser.collapsed(order)
        if collapsed is None and operator_kinds(trace)[order] == "nothing":
            node_of.append(None)
            continue
        node = order if collapsed is None else first_order.setdefault(collapsed, order)
        node_of.append(node)
        collapsed_as[node] = collapsed
    return node_of, collapsed_as


def boxes(path: str) -> list[str]:
    """The boxes around a module, outermost first: `a`, `a.b`, `a.b.0`; a list has no box."""
    parts = path.split(".") if path else []
    paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return [
        box
        for depth, box in enumerate(paths)
        if depth + 1 == len(parts) or not parts[depth + 1].isdigit()
    ]


class _Collapser:
    """Decides which modules are collapsed into one node."""

    def __init__(self, trace: Trace, depth: int | None, level: Level) -> None:
        self._trace = trace
        self._depth = depth
        self._operators = trace.expand_replays(trace.recorded.operators)
        self._lists = {module.path for module in trace.modules if module.is_list}
        self._innermost = _innermost(trace) if level == "module" else frozenset()
        if depth is not None or level == "module":
            self._innermost |= _childless(trace)

    def collapsed(self, order: int) -> str | None:
        """The outermost collapsed module that contains an operator; never a list of modules."""
        path = self._trace.paths[order]
        is_function = self._operators[order].kind == "function"
        parts = path.split(".") if path else []
        for length in range(1, len(parts) + is_function):
            module = ".".join(parts[:length])
            if module in self._lists:
                continue
            if module in self._innermost or (self._depth is not None and length >= self._depth):
                return module
        return None

    def box(self, order: int, collapsed: str | None) -> str:
        path = collapsed or self._trace.paths[order]
        is_module = collapsed is not None or self._operators[order].kind == "module"
        box = path.rpartition(".")[0] if is_module else path
        return box.rpartition(".")[0] if box in self._lists else box


@memoize
def _innermost(trace: Trace) -> frozenset[str]:
    """Containers whose children are all leaf modules, without the model itself."""
    parents = {module.path.rpartition(".")[0] for module in trace.modules if module.path}
    of_containers = {path.rpartition(".")[0] for path in parents if path}
    return frozenset(parents - of_containers - {""})


@memoize
def _childless(trace: Trace) -> frozenset[str]:
    """Modules without children; functions run in one only if it is the optimizer of a step."""
    parents = {module.path.rpartition(".")[0] for module in trace.modules if module.path}
    return frozenset(module.path for module in trace.modules) - parents - {""}


def _drawn_edges(
    trace: Trace,
    groups: Iterable[LayerGroup],
    counterparts: Sequence[int],
    node_of: list[int | None],
) -> Iterator[OutlineEdge]:
    group_of = {
        (group.first.stack, index): group.first for group in groups for index in group.indices
    }
    placements: list[_Placement | None] = [
        None if layer is None else (layer, group_of[layer.stack, layer.index])
        for layer in layers(trace)
    ]
    residual: dict[tuple[int, int], bool] = {}
    found: dict[tuple[int, int, EdgeKind], dict[int, None]] = {}
    for edge in edges(trace):
        source, target = node_of[edge.source], node_of[edge.target]
        if source is None or target is None:
            continue
        kind: EdgeKind | None = _flow(trace, edge)
        if _leads_to_next_layer(
            placements[edge.source], placements[edge.target], back=source >= target
        ):
            kind = "next layer"
        elif source == target:
            continue
        elif kind is None:
            ends = counterparts[edge.source], counterparts[edge.target]
            if ends not in residual:
                residual[ends] = is_residual(trace, edge)
            kind = "residual" if residual[ends] else "tensor"
        found.setdefault((source, target, kind), {})[edge.tensor] = None
    for (source, target, kind), read in found.items():
        if kind == "tensor":
            yield OutlineEdge(
                source, target, kind, (*read, *found.get((source, target, "residual"), ()))
            )
        elif kind != "residual" or (source, target, "tensor") not in found:
            yield OutlineEdge(source, target, kind, tuple(read))


def _flow(trace: Trace, edge: Edge) -> EdgeKind | None:
    """What an edge is by the tensor that it leads through; None for a direct read."""
    if edge.through is None:
        return None
    if edge.through == SAVED:
        return "saved"
    record = trace.recorded
    role = record.storages[record.tensors[edge.tensor].storage].role
    if role == "gradient":
        return "gradient"
    return None if role == "optimizer" else "cache"


_Placement = tuple[Layer, Layer]  # an operator's layer, and the first of its group


def _leads_to_next_layer(here: _Placement | None, there: _Placement | None, *, back: bool) -> bool:
    """Whether an edge leads to a later layer that is drawn as this layer or an earlier one."""
    if here is None or there is None or here[0] == there[0]:
        return False
    return here[1] == there[1] or back


def _external_tensors(
    trace: Trace, counterparts: Iterable[int], node_of: list[int | None]
) -> Iterator[ExternalTensor]:
    """Inputs and cache that drawn operators read before any operator writes them."""
    record = trace.recorded
    tensors = record.tensors
    written: set[int] = set()
    readers: dict[int, dict[int, None]] = {}
    storage_maps: dict[int, dict[int, int]] = {id(None): {}}
    for order, counterpart in enumerate(counterparts):
        operator, replay = trace.steps[order]
        if replay is not None and id(replay) not in storage_maps:
            storages = replay.map_storages(tensors).items()
            storage_maps[id(replay)] = {one: other for one, (other, _) in storages}
        mapped, node = storage_maps[id(replay)], node_of[order]
        for kernel in record.kernels_by_operator[operator]:
            for index in kernel.inputs if order == counterpart else ():
                storage = mapped.get(tensors[index].storage, tensors[index].storage)
                is_external = record.storages[storage].role in ("input", "cache")
                if is_external and storage not in written and node is not None:
                    readers.setdefault(storage, {})[node] = None
            written.update(
                mapped.get(tensors[index].storage, tensors[index].storage)
                for index in kernel.writes
            )
    for storage, read in readers.items():
        name = record.storages[storage].name or record.storages[storage].role
        first = next(index for index, tensor in enumerate(tensors) if tensor.storage == storage)
        yield ExternalTensor(name, first, tuple(read))
