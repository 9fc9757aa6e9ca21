"""The dependency graph: modules as nested boxes with the dataflow between their operators."""

from dataclasses import replace

from llmsim_magic.analyses.graph.outline import boxes, default_depth, outline
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.graphs.builder import GraphBuilder, Times, at_level
from llmsim_magic.views.graphs.graph import Graph


def dependency_graph(trace: Trace, selection: Selection, times: Times = None) -> Graph:
    """Draw modules as nested boxes with the dataflow between their operators.

    Args:
        trace: the pass.
        selection: the depth to which modules are opened, the layers to draw one by one, and
            whether a node is a module, an operator or a kernel. Without a depth, modules are
            opened as far as the graph still fits a screen.
        times: the time of each operator, for the interactive graph; not for kernels.

    Raises:
        InvalidValue: a selected layer does not exist.
        CannotDraw: the graph has more nodes than a browser can show.
    """
    trace = at_level(trace, selection.level)
    if selection.depth is None and selection.level == "operator":
        selection = replace(selection, depth=default_depth(trace, selection.layers))
    builder = GraphBuilder(trace, outline(trace, selection), selection, times)
    return builder.build("Dependencies", boxes_of=boxes, label=builder.labels.label)
