"""The dependency and topological views as Graphviz graphs, repeated layers drawn once."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import graphviz

from llmsim_magic.analyses.graph.dataflow import ranks
from llmsim_magic.analyses.graph.kernel_level import split_by_kernel
from llmsim_magic.analyses.graph.outline import (
    EdgeKind,
    ExternalTensor,
    Node,
    Outline,
    OutlineEdge,
    boxes,
    default_depth,
    outline,
)
from llmsim_magic.records.trace.selection import Level, Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.graphs.labels import Labels
from llmsim_magic.views.graphs.render import CannotDraw
from llmsim_magic.views.plots.plot import drawable

_FONT = "Helvetica"  # whose widths the layout knows; a list of fonts would be taken for Times
# Tints of the colours of Okabe and Ito, which colour-blind people tell apart; black text on them.
_FILLS = {
    "matmul": "#a6d4f2",
    "attention": "#f5bf85",
    "normalisation": "#93d9bf",
    "elementwise": "#f6ee9d",
    "embedding": "#e5b8d2",
    "movement": "#d9d9d9",
    "module": "#ffffff",
}
_LINES: dict[EdgeKind, dict[str, str]] = {
    "tensor": {"color": "#454545"},
    "residual": {"color": "#0072b2", "style": "bold"},
    "cache": {"color": "#c14b00", "style": "dashed"},
    "next layer": {"color": "#7a7a7a", "style": "dotted", "constraint": "false"},
}
_INK, _QUIET, _FAINT, _STACK = "#222222", "#5c636d", "#8a8f98", "#0f62ac"
_SMALL = {"fontsize": "9", "margin": "0.06,0.03", "height": "0.2"}
_PLAIN = {"shape": "plaintext", "style": "", "fontcolor": _QUIET}
_BOX = {"fontsize": "11", "labeljust": "l"}
_NOTE = " thick border: much of the FLOPs "
_CLOSED = "· ▸ opened by a larger depth "
_MANY_LINES = 8
_LONGEST = 120  # characters of a line that a drawing can bear
_MOST_NODES = 5_000


@dataclass(slots=True)
class _Cluster:
    """A box around a module: its own nodes and the boxes inside it."""

    path: str
    nodes: list[Node] = field(default_factory=list)
    inside: dict[str, "_Cluster"] = field(default_factory=dict)


def dependency_graph(trace: Trace, selection: Selection) -> Graph:
    """Modules as nested boxes with the dataflow between their operators.

    Where no depth is asked for, modules are opened so deep that the drawing fits a screen.
    """
    trace = _seen_at(trace, selection.level)
    if selection.depth is None and selection.level == "operator":
        selection = replace(selection, depth=default_depth(trace, selection.layers))
    drawn = _Drawn(trace, outline(trace, selection))
    graph = drawn.graph("Dependencies", _boxes_of_modules, drawn.words.label)
    return _of_operators(graph, selection.level)


def topological_graph(trace: Trace, selection: Selection) -> Graph:
    """Operators in execution order, each below all that it waits for; edges carry shapes.

    A node's number is its `order` in the table of operators, or at level `kernel` its place
    among the kernels that move data; nodes of one rank could run side by side.
    """
    trace = _seen_at(trace, selection.level)
    drawn = _Drawn(trace, outline(trace, selection))
    place = ranks(trace)

    def label(node: Node) -> str:
        return f"#{node.order} {drawn.words.label(node)} · rank {place[node.order]}"

    graph = drawn.graph("Execution order", _boxes_of_layers, label, place)
    return _of_operators(graph, selection.level)


def _of_operators(graph: Graph, level: Level) -> Graph:
    """A node that is a kernel stands for no operator."""
    return replace(graph, drawn_as=()) if level == "kernel" else graph


def _seen_at(trace: Trace, level: Level) -> Trace:
    return split_by_kernel(trace) if level == "kernel" else trace


def _boxes_of_modules(path: str, outlined: Outline) -> list[str]:
    return boxes(path)


def _boxes_of_layers(path: str, outlined: Outline) -> list[str]:
    layer = outlined.group_of(path)
    return [] if layer is None else [layer]


class _Drawn:
    """An outline in Graphviz's terms."""

    def __init__(self, trace: Trace, outlined: Outline) -> None:
        self.words = Labels(trace, outlined)
        self._trace = trace
        self._outline = outlined
        self._record = trace.recorded
        self._most = max(map(self.words.flops, outlined.nodes), default=0)
        self._titles: dict[str, str] = {}
        self._stubs = _stubs(outlined.edges)

    def graph(
        self,
        title: str,
        boxes_of: Callable[[str, Outline], list[str]],
        label: Callable[[Node], str],
        rows: Sequence[int] | None = None,
    ) -> Graph:
        """The whole graph: nodes in the boxes that `boxes_of` gives for their own.

        With `rows`, one for each operator, nodes of the same row stand side by side, and the
        lines carry shapes. Raises `CannotDraw` for more nodes than anybody could look at.
        """
        if len(self._outline.nodes) > _MOST_NODES:
            raise CannotDraw(
                f"{len(self._outline.nodes):,} nodes are more than a browser can show "
                f"({_MOST_NODES:,}): name fewer --layers, a smaller --depth or a coarser --level"
            )
        root = _Cluster("")
        for node in self._outline.nodes:
            cluster = root
            for path in boxes_of(node.box, self._outline):
                cluster = cluster.inside.setdefault(path, _Cluster(path))
            cluster.nodes.append(node)
        dot = _digraph(self.words.caption(title))
        if self.words.is_large:
            dot.attr("graph", style="")
            dot.attr("node", style="filled")
        self._legend(dot)
        for number, given in enumerate(self._outline.inputs):
            self._add_given(dot, f"given{number}", given)
        self._add_cluster(dot, root, label)
        cut = {id(line) for lines in self._stubs.values() for line in lines}
        for line in self._outline.edges:
            if id(line) not in cut:
                self._add_line(dot, line, with_shapes=rows is not None and not self.words.is_large)
        if rows is not None and not self.words.is_large:
            self._add_rows(dot, rows)
        name = f"{self._trace.model.name}: {title.lower()}, {self._trace.workload}"
        return Graph(dot.source, name, self._titles, self._outline.node_of)

    # nodes

    def _add_node(self, dot: graphviz.Digraph, node: Node, label: str) -> None:
        share = self.words.flops(node) / self._most if self._most else 0
        dot.node(
            f"n{node.order}",
            _escape(label),
            fillcolor=_FILLS[self.words.kind(node)],
            penwidth=f"{1 + 4 * math.sqrt(share):.1f}",
        )
        self._titles[f"n{node.order}"] = self.words.tip(node)

    def _add_cluster(
        self, dot: graphviz.Digraph, cluster: _Cluster, label: Callable[[Node], str]
    ) -> None:
        for node in cluster.nodes:
            self._add_node(dot, node, label(node))
            for line in self._stubs.get(node.order, ()):
                self._add_stub(dot, line, node.order)
        for path, inner in cluster.inside.items():
            name, title = f"cluster_{len(self._titles)}", self.words.title(path)
            self._titles[name] = f"{path}: {title}"
            with dot.subgraph(name=name) as box:
                box.attr(label=_escape(f" {title} "), **_border(path in self._outline.groups))
                self._add_cluster(box, inner, label)

    def _add_given(self, dot: graphviz.Digraph, name: str, given: ExternalTensor) -> None:
        """A tensor that was there before the pass, and who reads it first."""
        tensor = self._record.tensors[given.tensor]
        flow: EdgeKind = "tensor"
        if self._record.storages[tensor.storage].role == "cache":
            flow = "cache"
        label = f"{'.'.join(given.name.split('.')[-3:])}\n{units.shape(tensor.shape)}"
        dot.node(name, _escape(label), **_PLAIN)
        self._titles[name] = f"{given.name} {units.shape(tensor.shape)} {tensor.dtype}"
        for reader in given.readers:
            dot.edge(name, f"n{reader}", **_LINES[flow])
            self._titles[f"{name}->n{reader}"] = self._titles[name]

    # lines

    def _add_line(self, dot: graphviz.Digraph, line: OutlineEdge, *, with_shapes: bool) -> None:
        source, target = f"n{line.source}", f"n{line.target}"
        shapes, said = self.words.carried(line)
        attributes = dict(_LINES[line.kind])
        if with_shapes and line.kind != "next layer":
            attributes["label"] = "\n".join(f" {shape} " for shape in shapes[:2])
        dot.edge(source, target, **attributes)
        self._titles[f"{source}->{target}"] = said

    def _add_stub(self, dot: graphviz.Digraph, line: OutlineEdge, here: int) -> None:
        """One end of a line that would cross everything: the other end is named beside it."""
        there = line.source if here == line.target else line.target
        other = next(node for node in self._outline.nodes if node.order == there)
        word = self.words.name(other)
        stub, node = f"n{line.source}_to_n{line.target}", f"n{here}"
        source, target = (stub, node) if here == line.target else (node, stub)
        dot.node(stub, _escape(f"#{there} {word}"), **_PLAIN)
        dot.edge(source, target, **_LINES[line.kind])
        self._titles[stub] = self._titles[f"{source}->{target}"] = self.words.carried(line)[1]

    def _add_rows(self, dot: graphviz.Digraph, rows: Sequence[int]) -> None:
        dot.attr(newrank="true")
        nodes: dict[int, list[int]] = {}
        for node in self._outline.nodes:
            nodes.setdefault(rows[node.order], []).append(node.order)
        for orders in nodes.values():
            if len(orders) > 1:
                with dot.subgraph(graph_attr={"rank": "same"}) as row:
                    for order in orders:
                        row.node(f"n{order}")

    # around it

    def _legend(self, dot: graphviz.Digraph) -> None:
        used = {self.words.kind(node) for node in self._outline.nodes}
        flows = {line.kind for line in self._outline.edges}
        kinds_ = [f"legend_{kind}" for kind in _FILLS if kind in used]
        ends: list[str] = []
        with dot.subgraph(name="cluster_legend") as legend:
            is_closed = any(node.collapsed is not None for node in self._outline.nodes)
            legend.attr(label=_NOTE + (_CLOSED if is_closed else ""), **_border(False))
            with legend.subgraph() as row:
                row.attr(rank="same")
                for name in kinds_:
                    kind = name.removeprefix("legend_")
                    row.node(name, kind, fillcolor=_FILLS[kind], **_SMALL)
            with legend.subgraph() as row:
                row.attr(rank="same")
                for flow, style in _LINES.items():
                    if flow in flows:
                        pair = f"legend_from{len(ends)}", f"legend_to{len(ends)}"
                        for end in pair:
                            row.node(end, "", shape="point", width="0.02")
                        row.edge(*pair, label=f" {flow} ", **style)
                        ends.append(pair[0])
            if kinds_ and ends:
                legend.edge(kinds_[0], ends[0], style="invis")
        lowest = ends or kinds_
        if lowest:
            for first in self._firsts():
                dot.edge(lowest[len(lowest) // 2], first, style="invis")

    def _firsts(self) -> list[str]:
        """What nothing that is drawn comes before: the legend stands above it."""
        given = self._outline.inputs
        read = {reader for each in given for reader in each.readers}
        read |= {line.target for line in self._outline.edges if line.kind != "next layer"}
        begin = (node.order for node in self._outline.nodes if node.order not in read)
        return [*(f"given{n}" for n in range(len(given))), *(f"n{order}" for order in begin)]


def _stubs(lines: Sequence[OutlineEdge]) -> dict[int, list[OutlineEdge]]:
    """The lines drawn at one end alone, by the node there.

    Those of a node that so many others read, or that reads so many, would bend the whole drawing.
    """
    out = Counter(line.source for line in lines)
    into = Counter(line.target for line in lines)
    found: dict[int, list[OutlineEdge]] = {}
    for line in lines:
        if out[line.source] > _MANY_LINES:
            found.setdefault(line.target, []).append(line)
        elif into[line.target] > _MANY_LINES:
            found.setdefault(line.source, []).append(line)
    return found


def _digraph(caption: str) -> graphviz.Digraph:
    return graphviz.Digraph(
        "llmsim",
        graph_attr={
            "label": _escape(caption), "labelloc": "t", "fontname": _FONT, "fontsize": "13",
            "rankdir": "TB", "bgcolor": "white", "nodesep": "0.25", "ranksep": "0.22",
            "pad": "0.3", "style": "rounded", "color": _FAINT, "labeljust": "c",
        },
        node_attr={
            "shape": "box", "style": "filled,rounded", "fontname": _FONT, "fontsize": "10",
            "color": _INK, "margin": "0.15,0.05", "height": "0.25",
        },
        edge_attr={
            "fontname": _FONT, "fontsize": "8", "fontcolor": _INK, "arrowsize": "0.6",
        },
    )  # fmt: skip


def _border(repeated: bool) -> dict[str, str]:
    if repeated:
        return _BOX | {"penwidth": "2", "color": _STACK, "fontcolor": _STACK}
    return _BOX | {"penwidth": "1", "color": _FAINT, "fontcolor": _INK}


def _escape(text: str) -> str:
    """Text that Graphviz shows as it is: no escapes or entities, never an HTML-like label."""
    lines = (drawable(line, _LONGEST).replace("&", "&amp;") for line in text.split("\n"))
    return str(graphviz.nohtml("\\n".join(map(graphviz.escape, lines))))
