"""The look of the graphs in Graphviz's terms: colours, styles, text escaping."""

import graphviz

from llmsim_magic.analyses.graph.outline import EdgeKind
from llmsim_magic.views.plots.plot import display_name

# Graphviz knows Helvetica's widths; it would lay out a list of fonts as Times.
_FONT = "Helvetica"
# Tints of Okabe and Ito's palette, which colour-blind people can distinguish, under black text.
FILL_COLOURS = {
    "matmul": "#a6d4f2",
    "attention": "#f5bf85",
    "normalisation": "#93d9bf",
    "elementwise": "#f6ee9d",
    "embedding": "#e5b8d2",
    "movement": "#d9d9d9",
    "module": "#ffffff",
}
EDGE_STYLES: dict[EdgeKind, dict[str, str]] = {
    "tensor": {"color": "#454545"},
    "residual": {"color": "#0072b2", "style": "bold"},
    "cache": {"color": "#c14b00", "style": "dashed"},
    "saved": {"color": "#00795a", "style": "dashed", "weight": "0"},
    "gradient": {"color": "#8a3ea1"},
    "next layer": {"color": "#7a7a7a", "style": "dotted", "constraint": "false"},
}
_TEXT_COLOUR, _MUTED_TEXT_COLOUR = "#222222", "#5c636d"
_BORDER_COLOUR, _REPEATED_BORDER_COLOUR = "#8a8f98", "#0f62ac"
LEGEND_NODE = {"fontsize": "9", "margin": "0.06,0.03", "height": "0.2"}
TEXT_NODE = {"shape": "plaintext", "style": "", "fontcolor": _MUTED_TEXT_COLOUR}
_MAX_LINE_LENGTH = 120  # characters


def new_digraph(caption: str) -> graphviz.Digraph:
    """An empty graph, drawn from top to bottom, with its caption above."""
    return graphviz.Digraph(
        "llmsim",
        graph_attr={
            "label": escape(caption), "labelloc": "t", "fontname": _FONT, "fontsize": "13",
            "rankdir": "TB", "bgcolor": "white", "nodesep": "0.25", "ranksep": "0.22",
            "pad": "0.3", "style": "rounded", "color": _BORDER_COLOUR, "labeljust": "c",
        },
        node_attr={
            "shape": "box", "style": "filled,rounded", "fontname": _FONT, "fontsize": "10",
            "color": _TEXT_COLOUR, "margin": "0.15,0.05", "height": "0.25",
        },
        edge_attr={
            "fontname": _FONT, "fontsize": "8", "fontcolor": _TEXT_COLOUR, "arrowsize": "0.6",
        },
    )  # fmt: skip


def cluster_style(*, is_repeated: bool) -> dict[str, str]:
    """The style of a box around a module; a repeated layer is bold and blue."""
    style = {"fontsize": "11", "labeljust": "l"}
    if is_repeated:
        colour = _REPEATED_BORDER_COLOUR
        return style | {"penwidth": "2", "color": colour, "fontcolor": colour}
    return style | {"penwidth": "1", "color": _BORDER_COLOUR, "fontcolor": _TEXT_COLOUR}


def escape(text: str) -> str:
    """Text that Graphviz shows literally: no escapes, no entities, no HTML-like labels."""
    lines = (display_name(line, _MAX_LINE_LENGTH) for line in text.split("\n"))
    escaped = (graphviz.escape(line.replace("&", "&amp;")) for line in lines)
    return str(graphviz.nohtml("\\n".join(escaped)))
