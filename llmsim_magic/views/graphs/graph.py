"""A graph that displays itself in a notebook and saves itself as SVG, DOT, PNG, PDF or JSON."""

import base64
import html
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled
from llmsim_magic.views.graph_viewer.contents import Contents
from llmsim_magic.views.graph_viewer.model_explorer import model_explorer_json
from llmsim_magic.views.graph_viewer.page_data import FirstView, page_data
from llmsim_magic.views.graph_viewer.script import style, viewer
from llmsim_magic.views.graphs.render import CannotDraw, render
from llmsim_magic.views.graphs.svg_postprocess import postprocess_svg
from llmsim_magic.views.plots.convert_svg import convert_svg
from llmsim_magic.views.safe_files import as_path, write_file
from llmsim_magic.views.section import Picture

FORMATS = ("svg", "dot", "png", "pdf", "json")


@dataclass(frozen=True)
class Graph(Picture):
    """A graph in DOT, which is laid out at the first use of `svg`.

    A notebook displays it as an image, which needs no trust.

    Attributes:
        dot: the DOT source.
        title: what the graph shows.
        tooltips: the tooltip of each node, edge and box, by its name in the DOT source.
        contents: every operator and edge, for the interactive graph and for JSON.
        first_view: what the interactive graph shows first.
        node_orders: for each operator of the pass, the order of its node; None if it has none.
            The node of order 5 is named `n5`.
    """

    dot: str
    title: str
    contents: Contents = field(compare=False)
    first_view: FirstView = field(compare=False)
    tooltips: Mapping[str, str] = field(default_factory=dict)
    node_orders: tuple[int | None, ...] = ()

    def node_of(self, order: int) -> str:
        """The name of the node that an operator is drawn in; empty if it is not drawn."""
        node = self.node_orders[order] if order < len(self.node_orders) else None
        return "" if node is None else f"n{node}"

    def operator_of(self, node: str) -> int | None:
        """The order of the operator that a node is named after; None if nodes are no operators."""
        digits = node.removeprefix("n")
        order = int(digits) if digits.isdecimal() else -1
        return order if 0 <= order < len(self.node_orders) and self.node_of(order) else None

    @cached_property
    def svg(self) -> str:
        """The laid-out graph; raises `CannotDraw` if no layout program works."""
        return self._lay_out(never_cancelled)

    def prepare(self, cancelled: IsCancelled) -> None:
        """Lay out `svg` now; if this is cancelled, the next use of `svg` tries again."""
        with suppress(CannotDraw):
            if "svg" not in vars(self):
                vars(self)["svg"] = self._lay_out(cancelled)

    def _lay_out(self, cancelled: IsCancelled) -> str:
        return postprocess_svg(render(self.dot, cancelled=cancelled), self.title, self.tooltips)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the graph to a file.

        Args:
            path: a file that ends in `.svg`, `.dot`, `.png`, `.pdf` or `.json`; JSON is what
                Model Explorer opens, with every layer and operator.
            overwrite: also replace a file that this package did not write.

        Returns:
            The path of the file.

        Raises:
            InvalidValue: another ending, or a file that cannot be written.
            OverwriteRefused: the file exists and was not written by this package.
            CannotDraw: no installed program can lay the graph out.
        """
        ending = as_path(path).suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue.must_be(
                "path", str(path), "a file ending in ." + ", .".join(FORMATS)
            )
        return write_file(path, self._content(ending), overwrite=overwrite)

    def json(self) -> bytes:
        """The graph for Model Explorer, with every layer and operator."""
        return model_explorer_json(self.contents, self.title)

    def _content(self, ending: str) -> bytes:
        if ending == "dot":
            return self.dot.encode()
        if ending == "json":
            return self.json()
        return self.svg.encode() if ending == "svg" else convert_svg(render(self.dot), ending)

    def picture(self) -> str:
        """The graph as an HTML image, which `viewer` makes interactive where scripts run."""
        try:
            data = base64.b64encode(self.svg.encode()).decode()
        except CannotDraw as error:
            return f"<p>{html.escape(str(error))}</p><pre>{html.escape(self.dot)}</pre>"
        title = html.escape(self.title, quote=True)
        # In single quotes, for JSON is full of double ones.
        about = self.data.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;")
        return (
            f"<style>{style()}</style>"
            f"<div class=\"llmsim-graph\" data-graph='{about}' "
            'style="background:white;overflow:auto;max-height:85vh">'
            f'<img alt="{title}" title="{title}" style="max-width:100%" '
            f'src="data:image/svg+xml;base64,{data}"/></div>'
        )

    @cached_property
    def data(self) -> str:
        """The data of the interactive graph, as JSON."""
        return page_data(self.contents, self.first_view, self.title)

    def _repr_html_(self) -> str:
        script = f"(() => {{{viewer()}makeInteractive(document);}})();"
        return f"{self.picture()}<script>{script}</script>"

    def __repr__(self) -> str:
        return f"Graph({self.title!r}: .svg, .dot, .save(path))"
