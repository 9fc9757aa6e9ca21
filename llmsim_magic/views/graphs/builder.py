"""Builds DOT source from the outline of a pass, with repeated layers drawn once."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import graphviz

from llmsim_magic.analyses.graph.kernel_level import split_by_kernel
from llmsim_magic.analyses.graph.outline import (
    EdgeKind,
    ExternalTensor,
    Node,
    Outline,
    OutlineEdge,
)
from llmsim_magic.analyses.graph.pass_level import split_by_pass
from llmsim_magic.analyses.time.pass_time import OperatorTime
from llmsim_magic.records.trace.selection import Level, Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.graph_viewer.contents import Contents
from llmsim_magic.views.graph_viewer.page_data import FirstView
from llmsim_magic.views.graphs.dot import (
    EDGE_STYLES,
    FILL_COLOURS,
    LEGEND_NODE,
    TEXT_NODE,
    cluster_style,
    escape,
    new_digraph,
)
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.graphs.labels import Labels
from llmsim_magic.views.graphs.render import CannotDraw

Times = Sequence[OperatorTime] | None  # of each operator of the pass
_MAX_NODES = 5_000
_MAX_EDGES = 8  # a node with more edges on one side has them cut, each to a stub at its other end
_LEGEND_TITLE = " thick border: much of the FLOPs "
_LEGEND_COLLAPSED = "· ▸ opened by a larger depth "


@dataclass(slots=True)
class _Cluster:
    """A box around a module: its own nodes, and the boxes inside it by path."""

    path: str
    nodes: list[Node] = field(default_factory=list)
    children: dict[str, "_Cluster"] = field(default_factory=dict)


def at_level(trace: Trace, level: Level) -> Trace:
    """The trace as it is drawn: a step by its passes, and at level `kernel` by its kernels."""
    by_pass = split_by_pass(trace)
    return split_by_kernel(by_pass) if level == "kernel" else by_pass


class GraphBuilder:
    """Builds one `Graph` from an outline."""

    def __init__(
        self, trace: Trace, outlined: Outline, selection: Selection, times: Times = None
    ) -> None:
        self.labels = Labels(trace, outlined)
        self._trace = trace
        self._outline = outlined
        self._selection = selection
        self._times = times
        self._record = trace.recorded
        self._max_flops = max(map(self.labels.flops, outlined.nodes), default=0)
        self._tooltips: dict[str, str] = {}
        self._stubs = _stubs_by_node(outlined.edges)

    def build(
        self,
        title: str,
        *,
        boxes_of: Callable[[str], list[str]],
        label: Callable[[Node], str],
        ranks: Sequence[int] | None = None,
    ) -> Graph:
        """Build the graph.

        Args:
            title: the first words of the caption.
            boxes_of: the paths of the boxes around a module, outermost first.
            label: the text of a node.
            ranks: the rank of each operator; if given, nodes of equal rank are drawn side by
                side and edges carry shapes, unless the graph is large.

        Raises:
            CannotDraw: the graph has more nodes than a browser can show.
        """
        if len(self._outline.nodes) > _MAX_NODES:
            raise CannotDraw(
                f"the graph has {len(self._outline.nodes):,} nodes, more than a browser can show "
                f"({_MAX_NODES:,}): select fewer --layers, a smaller --depth or a coarser --level"
            )
        dot = new_digraph(self.labels.caption(title))
        if self.labels.is_large:
            dot.attr("graph", style="")
            dot.attr("node", style="filled")
        self._add_legend(dot)
        for number, given in enumerate(self._outline.inputs):
            self._add_input(dot, f"given{number}", given)
        self._add_cluster(dot, self._clusters(boxes_of), label)
        is_detailed = ranks is not None and not self.labels.is_large
        is_cut = {id(edge) for edges in self._stubs.values() for edge in edges}
        for edge in self._outline.edges:
            if id(edge) not in is_cut:
                self._add_edge(dot, edge, with_shapes=is_detailed)
        if ranks is not None and is_detailed:
            self._align_ranks(dot, ranks)
        name = f"{self._trace.model.name}: {title.lower()}, {self._trace.workload}"
        # A node of a kernel graph is a kernel, so no node belongs to an operator.
        node_orders = () if self._selection.level == "kernel" else self._outline.node_of
        return Graph(
            dot=dot.source,
            title=name,
            contents=Contents(self._trace, self._times),
            first_view=FirstView(selection=self._selection, outlined=self._outline, ranks=ranks),
            tooltips=self._tooltips,
            node_orders=node_orders,
        )

    def _clusters(self, boxes_of: Callable[[str], list[str]]) -> _Cluster:
        """The nodes sorted into nested boxes."""
        root = _Cluster("")
        for node in self._outline.nodes:
            cluster = root
            for path in boxes_of(node.box):
                cluster = cluster.children.setdefault(path, _Cluster(path))
            cluster.nodes.append(node)
        return root

    def _add_cluster(
        self, dot: graphviz.Digraph, cluster: _Cluster, label: Callable[[Node], str]
    ) -> None:
        for node in cluster.nodes:
            self._add_node(dot, node, label(node))
            for edge in self._stubs.get(node.order, ()):
                self._add_stub(dot, edge, node.order)
        for path, child in cluster.children.items():
            name, title = f"cluster_{len(self._tooltips)}", self.labels.title(path)
            self._tooltips[name] = f"{path}: {title}"
            with dot.subgraph(name=name) as box:
                style = cluster_style(is_repeated=path in self._outline.groups)
                box.attr(label=escape(f" {title} "), **style)
                self._add_cluster(box, child, label)

    def _add_node(self, dot: graphviz.Digraph, node: Node, label: str) -> None:
        share = self.labels.flops(node) / self._max_flops if self._max_flops else 0
        dot.node(
            f"n{node.order}",
            escape(label),
            fillcolor=FILL_COLOURS[self.labels.kind(node)],
            penwidth=f"{1 + 4 * math.sqrt(share):.1f}",
        )
        self._tooltips[f"n{node.order}"] = self.labels.tooltip(node)

    def _add_input(self, dot: graphviz.Digraph, name: str, given: ExternalTensor) -> None:
        """Add an input or cache tensor, with an edge to each operator that reads it first."""
        tensor = self._record.tensors[given.tensor]
        is_cache = self._record.storages[tensor.storage].role == "cache"
        kind: EdgeKind = "cache" if is_cache else "tensor"
        label = f"{'.'.join(given.name.split('.')[-3:])}\n{units.shape(tensor.shape)}"
        dot.node(name, escape(label), **TEXT_NODE)
        self._tooltips[name] = f"{given.name} {units.shape(tensor.shape)} {tensor.dtype}"
        for reader in given.readers:
            dot.edge(name, f"n{reader}", **EDGE_STYLES[kind])
            self._tooltips[f"{name}->n{reader}"] = self._tooltips[name]

    def _add_edge(self, dot: graphviz.Digraph, edge: OutlineEdge, *, with_shapes: bool) -> None:
        source, target = f"n{edge.source}", f"n{edge.target}"
        attributes = dict(EDGE_STYLES[edge.kind])
        if with_shapes and edge.kind != "next layer":
            shapes = self.labels.edge_shapes(edge)
            attributes["label"] = "\n".join(f" {shape} " for shape in shapes[:2])
        dot.edge(source, target, **attributes)
        self._tooltips[f"{source}->{target}"] = self.labels.edge_tooltip(edge)

    def _add_stub(self, dot: graphviz.Digraph, edge: OutlineEdge, order: int) -> None:
        """Add one end of an edge; the name of the node at the other end stands beside it."""
        other_order = edge.source if order == edge.target else edge.target
        other = next(node for node in self._outline.nodes if node.order == other_order)
        stub, node = f"n{edge.source}_to_n{edge.target}", f"n{order}"
        source, target = (stub, node) if order == edge.target else (node, stub)
        dot.node(stub, escape(f"#{other_order} {self.labels.name(other)}"), **TEXT_NODE)
        dot.edge(source, target, **EDGE_STYLES[edge.kind])
        tooltip = self.labels.edge_tooltip(edge)
        self._tooltips[stub] = self._tooltips[f"{source}->{target}"] = tooltip

    def _align_ranks(self, dot: graphviz.Digraph, ranks: Sequence[int]) -> None:
        """Draw nodes of equal rank side by side."""
        dot.attr(newrank="true")
        orders_by_rank: dict[int, list[int]] = {}
        for node in self._outline.nodes:
            orders_by_rank.setdefault(ranks[node.order], []).append(node.order)
        for orders in orders_by_rank.values():
            if len(orders) > 1:
                with dot.subgraph(graph_attr={"rank": "same"}) as row:
                    for order in orders:
                        row.node(f"n{order}")

    def _add_legend(self, dot: graphviz.Digraph) -> None:
        """Add the used fill colours and edge styles, above the first nodes."""
        used_kinds = {self.labels.kind(node) for node in self._outline.nodes}
        kinds = [kind for kind in FILL_COLOURS if kind in used_kinds]
        used_flows = {edge.kind for edge in self._outline.edges}
        kind_nodes = [f"legend_{kind}" for kind in kinds]
        edge_nodes: list[str] = []
        with dot.subgraph(name="cluster_legend") as legend:
            is_collapsed = any(node.collapsed is not None for node in self._outline.nodes)
            label = _LEGEND_TITLE + (_LEGEND_COLLAPSED if is_collapsed else "")
            legend.attr(label=label, **cluster_style(is_repeated=False))
            with legend.subgraph() as row:
                row.attr(rank="same")
                for name, kind in zip(kind_nodes, kinds, strict=True):
                    row.node(name, kind, fillcolor=FILL_COLOURS[kind], **LEGEND_NODE)
            with legend.subgraph() as row:
                row.attr(rank="same")
                for flow, style in EDGE_STYLES.items():
                    if flow in used_flows:
                        ends = f"legend_from{len(edge_nodes)}", f"legend_to{len(edge_nodes)}"
                        for end in ends:
                            row.node(end, "", shape="point", width="0.02")
                        row.edge(*ends, label=f" {flow} ", **style)
                        edge_nodes.append(ends[0])
            if kind_nodes and edge_nodes:
                legend.edge(kind_nodes[0], edge_nodes[0], style="invis")
        last_row = edge_nodes or kind_nodes
        if last_row:
            for first in self._nodes_without_predecessor():
                dot.edge(last_row[len(last_row) // 2], first, style="invis")

    def _nodes_without_predecessor(self) -> list[str]:
        inputs = self._outline.inputs
        targets = {reader for given in inputs for reader in given.readers}
        targets |= {edge.target for edge in self._outline.edges if edge.kind != "next layer"}
        orders = (node.order for node in self._outline.nodes if node.order not in targets)
        return [*(f"given{n}" for n in range(len(inputs))), *(f"n{order}" for order in orders)]


def _stubs_by_node(edges: Sequence[OutlineEdge]) -> dict[int, list[OutlineEdge]]:
    """The edges to cut, by the node at which a stub is drawn.

    A node with very many incoming or outgoing edges would distort the whole layout.
    """
    out_degree = Counter(edge.source for edge in edges)
    in_degree = Counter(edge.target for edge in edges)
    stubs: dict[int, list[OutlineEdge]] = {}
    for edge in edges:
        if out_degree[edge.source] > _MAX_EDGES:
            stubs.setdefault(edge.target, []).append(edge)
        elif in_degree[edge.target] > _MAX_EDGES:
            stubs.setdefault(edge.source, []).append(edge)
    return stubs
