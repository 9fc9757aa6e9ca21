"""The topological graph: operators in execution order, each below those it depends on."""

from llmsim_magic.analyses.graph.dataflow import ranks
from llmsim_magic.analyses.graph.outline import Node, outline
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.graphs.builder import GraphBuilder, Times, at_level
from llmsim_magic.views.graphs.graph import Graph


def topological_graph(trace: Trace, selection: Selection, times: Times = None) -> Graph:
    """Draw operators in execution order, each below its dependencies, with shapes on the edges.

    A node's number is its `order` in the table of operators or, at level `kernel`, its place
    among the kernels that move data. Nodes of equal rank could run in parallel.

    Args:
        trace: the pass.
        selection: as for `dependency_graph`; without a depth, every operator is drawn.
        times: the time of each operator, for the interactive graph; not for kernels.

    Raises:
        InvalidValue: a selected layer does not exist.
        CannotDraw: the graph has more nodes than a browser can show.
    """
    trace = at_level(trace, selection.level)
    outlined = outline(trace, selection)
    builder = GraphBuilder(trace, outlined, selection, times)
    rank_of = ranks(trace)

    def label(node: Node) -> str:
        return f"#{node.order} {builder.labels.label(node)} · rank {rank_of[node.order]}"

    def boxes_of(path: str) -> list[str]:
        layer = outlined.group_of(path)
        return [] if layer is None else [layer]

    return builder.build("Execution order", boxes_of=boxes_of, label=label, ranks=rank_of)
