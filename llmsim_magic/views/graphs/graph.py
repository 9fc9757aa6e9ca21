"""A graph that displays itself in a notebook and saves itself as SVG, DOT, PNG or PDF."""

import base64
import html
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled
from llmsim_magic.views.graphs.render import CannotDraw, render
from llmsim_magic.views.graphs.svg_postprocess import postprocess_svg
from llmsim_magic.views.safe_files import as_path, write_file

_STYLE = """\
.llmsim-graph {background:white; color:#222; color-scheme:light; padding:4px; text-align:center}
.llmsim-graph[data-live] {max-height:none !important; overflow:hidden !important}
.llmsim-graph svg {display:block; margin:auto; cursor:grab; touch-action:pan-y}
.llmsim-graph svg g:is(.cluster,.node) {cursor:pointer}
.llmsim-graph svg g.chosen :is(path,polygon) {stroke:#b3003b; stroke-width:5}
.llmsim-graph :is(svg,g):focus-visible {outline:2px solid #0f62ac}
.llmsim-bar {display:flex; gap:4px; align-items:center; padding-bottom:4px; font-size:12px}
.llmsim-bar :is(button,input) {font-size:12px; padding:2px 8px; background:#fff; color:#222}
.llmsim-bar ::placeholder {color:#5c636d}
@media print {.llmsim-bar {display:none}}"""
FORMATS = ("svg", "dot", "png", "pdf")


@dataclass(frozen=True)
class Graph:
    """A graph in DOT, which is laid out at the first use of `svg`.

    A notebook displays it as an image, which needs no trust.

    Attributes:
        dot: the DOT source.
        title: what the graph shows.
        tooltips: the tooltip of each node, edge and box, by its name in the DOT source.
        node_orders: for each operator of the pass, the order of its node; None if it has none.
            The node of order 5 is named `n5`.
    """

    dot: str
    title: str
    tooltips: Mapping[str, str] = field(default_factory=dict)
    node_orders: tuple[int | None, ...] = ()

    def node_of(self, order: int) -> str:
        """The name of the node that an operator is drawn in; empty if it is not drawn."""
        node = self.node_orders[order] if order < len(self.node_orders) else None
        return "" if node is None else f"n{node}"

    def operator_of(self, node: str) -> int | None:
        """The order of the first operator drawn in the node of this name."""
        return next((o for o in range(len(self.node_orders)) if self.node_of(o) == node), None)

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
            path: a file that ends in `.svg`, `.dot`, `.png` or `.pdf`; the last two need
                Graphviz's program `dot` or pygraphviz.
            overwrite: also replace a file that this package did not write.

        Returns:
            The path of the file.

        Raises:
            InvalidValue: another ending, or a file that cannot be written.
            OverwriteRefused: the file exists and was not written by this package.
            CannotDraw: no installed program can draw the format.
        """
        ending = as_path(path).suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue.must_be(
                "path", str(path), "a file ending in ." + ", .".join(FORMATS)
            )
        renderers = {"dot": lambda: self.dot.encode(), "svg": lambda: self.svg.encode()}
        content = renderers.get(ending, lambda: render(self.dot, ending))()
        return write_file(path, content, overwrite=overwrite)

    def picture(self) -> str:
        """The graph as an HTML image, which `viewer` makes interactive where scripts run."""
        try:
            data = base64.b64encode(self.svg.encode()).decode()
        except CannotDraw as error:
            return f"<p>{html.escape(str(error))}</p><pre>{html.escape(self.dot)}</pre>"
        title = html.escape(self.title, quote=True)
        return (
            f"<style>{_STYLE}</style>"
            '<div class="llmsim-graph" style="background:white;overflow:auto;max-height:85vh">'
            f'<img alt="{title}" title="{title}" style="max-width:100%" '
            f'src="data:image/svg+xml;base64,{data}"/></div>'
        )

    def _repr_html_(self) -> str:
        script = f"(() => {{{viewer()}makeInteractive(document);}})();"
        return f"{self.picture()}<script>{script}</script>"

    def __repr__(self) -> str:
        return f"Graph({self.title!r}: .svg, .dot, .save(path))"


@cache
def viewer() -> str:
    """JavaScript that defines `makeInteractive(root)`: pan, zoom, search and fold the graphs."""
    return resources.files("llmsim_magic.views.graphs").joinpath("viewer.js").read_text("utf-8")
