"""The dependency and topological views as Graphviz graphs, repeated layers drawn once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import graphviz

from llmsim_magic.analyses.dataflow import edges, ranks
from llmsim_magic.analyses.kinds import kinds
from llmsim_magic.analyses.layers import folded, repeats
from llmsim_magic.analyses.totals import costs, totals
from llmsim_magic.records.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.drawing import Graph

_FONT = "Helvetica,Arial,sans-serif"
_FILLS = {
    "matmul": "#cfe3f5",
    "attention": "#f8d9c0",
    "normalisation": "#d5eddc",
    "elementwise": "#f4f0c3",
    "embedding": "#e6d9f0",
    "movement": "#e4e6e8",
    "module": "#f7f7f7",
}


@dataclass(slots=True)
class _Cluster:
    """A box around a module: its own nodes and the boxes inside it."""

    path: str
    nodes: list[int] = field(default_factory=list)
    inside: dict[str, "_Cluster"] = field(default_factory=dict)


def dependency_graph(trace: Trace, depth: int | None = None) -> Graph:
    """Modules as nested boxes with the dataflow between their operators.

    `depth` is how deep modules are opened; deeper ones are single nodes. Layers that do the same
    work are drawn once and marked with how many there are.
    """
    drawn = _Drawn(trace, depth)
    dot = _digraph(trace, "Dependencies", drawn)
    root = _Cluster("")
    for order in drawn.nodes:
        cluster = root
        for path in _boxes(drawn.owner(order)):
            cluster = cluster.inside.setdefault(path, _Cluster(path))
        cluster.nodes.append(order)
    _draw_cluster(dot, root, drawn, drawn.label)
    drawn.draw_edges(dot, with_shapes=False)
    return Graph(dot.source, f"{trace.model.name}: dependencies, {trace.workload}")


def topological_graph(trace: Trace, depth: int | None = None) -> Graph:
    """Operators in execution order, each below all that it waits for; edges carry shapes.

    A node's number is its `order` in the table; nodes of one rank could run side by side.
    """
    drawn = _Drawn(trace, depth)
    dot = _digraph(trace, "Execution order", drawn)
    root = _Cluster("")
    for order in drawn.nodes:
        layer = drawn.layer_of.get(order)
        cluster = root if layer is None else root.inside.setdefault(layer, _Cluster(layer))
        cluster.nodes.append(order)
    place = ranks(trace)
    _draw_cluster(
        dot, root, drawn, lambda order: f"#{order} · rank {place[order]}\n{drawn.label(order)}"
    )
    drawn.draw_edges(dot, with_shapes=True)
    return Graph(dot.source, f"{trace.model.name}: execution order, {trace.workload}")


class _Drawn:
    """What is drawn of a trace: which operators stand for which, and the edges between them."""

    def __init__(self, trace: Trace, depth: int | None) -> None:
        self.trace = trace
        self.record = trace.recorded
        self.operators = trace.of_each(self.record.operators)
        self.kinds = kinds(trace)
        self.costs = costs(trace)
        self.counts = {repeat.first.path: len(repeat.indices) for repeat in repeats(trace)}
        self._modules = {module.path: module for module in trace.modules}
        first: dict[str, int] = {}
        self.stands_for: list[int] = []
        self.closed: dict[int, str] = {}
        for twin in folded(trace):
            is_function = self.operators[twin].kind == "function"
            closed = self._closed(trace.paths[twin], depth, is_function)
            if closed is None:
                self.stands_for.append(twin)
            else:
                node = first.setdefault(closed, twin)
                self.closed[node] = closed
                self.stands_for.append(node)
        shown = dict.fromkeys(self.stands_for)
        self.nodes = [n for n in shown if self.kinds[n] != "nothing" or n in self.closed]
        self.layer_of = {
            order: layer
            for order in self.nodes
            if (layer := self._layer(self.owner(order))) is not None
        }

    def _closed(self, path: str, depth: int | None, is_inside: bool) -> str | None:
        """The module that hides an operator when modules are opened `depth` deep; never a list.

        A function stands inside the module of its path, a module beside others in its parent.
        """
        parts = path.split(".") if path else []
        if depth is None or len(parts) + is_inside <= depth:
            return None
        module = ".".join(parts[:depth])
        is_list = module in self._modules and self._modules[module].is_list
        return self._closed(path, depth + 1, is_inside) if is_list else module

    def owner(self, order: int) -> str:
        """The module whose box a node stands in."""
        path = self.closed.get(order, self.trace.paths[order])
        is_module = order in self.closed or self.operators[order].kind == "module"
        box = path.rpartition(".")[0] if is_module else path
        is_list = box in self._modules and self._modules[box].is_list
        return box.rpartition(".")[0] if is_list else box

    def _layer(self, path: str) -> str | None:
        return next((box for box in _boxes(path) if box in self.counts), None)

    def label(self, order: int) -> str:
        operator, path = self.operators[order], self.trace.paths[order]
        closed = self.closed.get(order)
        if closed is not None:
            called = self.trace.calls.get(closed)
            outputs = self.record.shapes(called.first.outputs) if called else []
            return f"{self.title(closed)}\n{units.shapes(outputs[:1])}"
        head = f"{_name(path)}\n{operator.op}" if operator.kind == "module" else operator.op
        given = units.shapes(self.record.shapes(operator.outputs)[:2])
        params = self.costs[order].params
        return f"{head}\n{given}" + (f"\n{units.scaled(params)} params" if params else "")

    def title(self, path: str) -> str:
        """`layers.0 ×28 Qwen3DecoderLayer`."""
        times = f" ×{self.counts[path]}" if self.counts.get(path, 1) > 1 else ""
        return f"{_name(path)}{times}  {self._modules[path].type}"

    def tooltip(self, order: int) -> str:
        operator, cost = self.operators[order], self.costs[order]
        flops = "unknown" if cost.flops is None else units.scaled(cost.flops)
        return (
            f"#{order} {self.trace.paths[order]} {operator.op}\n"
            f"in {units.shapes(self.record.shapes(operator.inputs))}\n"
            f"out {units.shapes(self.record.shapes(operator.outputs))}\n"
            f"{flops} FLOPs, {units.nbytes(cost.bytes_read)} read, "
            f"{units.nbytes(cost.bytes_written)} written\n{operator.source or ''}"
        )

    def fill(self, order: int) -> str:
        return _FILLS["module" if order in self.closed else self.kinds[order]]

    def draw_edges(self, dot: graphviz.Digraph, with_shapes: bool) -> None:
        """Edges between what is drawn; one from a layer to its next copy would loop: left out."""
        shown = set(self.nodes)
        found: dict[tuple[int, int], list[str]] = {}
        for edge in edges(self.trace):
            source, target = self.stands_for[edge.source], self.stands_for[edge.target]
            if source < target and {source, target} <= shown:
                labels = found.setdefault((source, target), [])
                label = units.shape(self.record.tensors[edge.tensor].shape)
                if label not in labels:
                    labels.append(label)
        fanned = _fanned_out(found)
        for (source, target), labels in found.items():
            attributes = {"tooltip": ", ".join(labels)}
            if with_shapes:
                attributes["label"] = "\n".join(labels[:2])
            if source in fanned:
                attributes |= {"constraint": "false", "weight": "0", "color": "#9a9a9a"}
            dot.edge(f"n{source}", f"n{target}", **attributes)


def _fanned_out(found: Iterable[tuple[int, int]]) -> set[int]:
    """Nodes that feed so many others that their edges would bend the whole drawing."""
    targets: dict[int, int] = {}
    for source, _ in found:
        targets[source] = targets.get(source, 0) + 1
    return {source for source, number in targets.items() if number > 8}


def _digraph(trace: Trace, title: str, drawn: _Drawn) -> graphviz.Digraph:
    sums = totals(trace)
    passed = sum(kind == "nothing" for kind in drawn.kinds)
    aside = f"\n{passed} calls that run no kernel are not drawn" if passed else ""
    caption = (
        f"{title} · {trace.model.name} · {trace.workload}\n"
        f"{units.scaled(sums.parameters)} parameters · {units.scaled(sums.flops)} FLOPs · "
        f"{sums.operators} operators{aside}"
    )
    dot = graphviz.Digraph(
        "llmsim",
        graph_attr={
            "label": _escape(caption), "labelloc": "t", "fontname": _FONT, "fontsize": "13",
            "rankdir": "TB", "bgcolor": "white", "nodesep": "0.25", "ranksep": "0.35",
            "pad": "0.3", "style": "rounded", "color": "#8a8f98",
        },
        node_attr={
            "shape": "box", "style": "filled,rounded", "fontname": _FONT, "fontsize": "10",
            "color": "#4a4f57", "margin": "0.12,0.06", "height": "0.3",
        },
        edge_attr={
            "fontname": _FONT, "fontsize": "8", "color": "#4a4f57", "fontcolor": "#4a4f57",
            "arrowsize": "0.6",
        },
    )  # fmt: skip
    with dot.subgraph(name="cluster_legend") as legend:
        legend.attr(label="kind of work", fontsize="9", color="#d0d0d0", style="rounded")
        used = [kind for kind in _FILLS if kind in {_kind(drawn, order) for order in drawn.nodes}]
        for kind in used:
            legend.node(f"legend_{kind}", kind, fillcolor=_FILLS[kind], fontsize="9")
        for above, below in pairwise(used):
            legend.edge(f"legend_{above}", f"legend_{below}", style="invis")
    return dot


def _kind(drawn: _Drawn, order: int) -> str:
    return "module" if order in drawn.closed else drawn.kinds[order]


def _draw_cluster(
    dot: graphviz.Digraph, cluster: _Cluster, drawn: _Drawn, label: Callable[[int], str]
) -> None:
    for order in cluster.nodes:
        dot.node(
            f"n{order}",
            _escape(label(order)),
            fillcolor=drawn.fill(order),
            tooltip=_escape(drawn.tooltip(order)),
        )
    for path, inner in cluster.inside.items():
        with dot.subgraph(name=f"cluster_{path}") as box:
            box.attr(
                label=_escape(drawn.title(path)), fontsize="11", **_border(path in drawn.counts)
            )
            _draw_cluster(box, inner, drawn, label)


def _border(repeated: bool) -> dict[str, str]:
    if repeated:
        return {"penwidth": "2", "color": "#0f62ac", "fontcolor": "#0f62ac"}
    return {"penwidth": "1", "color": "#8a8f98", "fontcolor": "black"}


def _boxes(path: str) -> list[str]:
    """The boxes from the outermost to the module's own: `a`, `a.b`, `a.b.0`; lists get none."""
    parts = path.split(".") if path else []
    paths = [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return [
        box
        for depth, box in enumerate(paths)
        if depth + 1 == len(parts) or not parts[depth + 1].isdigit()
    ]


def _name(path: str) -> str:
    """The last word of a path; an element of a list keeps the list's: `layers.0`."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdigit() and head else last


def _escape(text: str) -> str:
    """Text that Graphviz shows as it is: no escapes, never an HTML-like label."""
    return str(graphviz.nohtml(graphviz.escape(text).replace("\n", "\\n")))
