"""A drawing that shows itself in a notebook, and saves itself in the formats Graphviz knows."""

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
from llmsim_magic.views.graphs.svg_finish import finish_svg
from llmsim_magic.views.safe_files import resolve_path, write_file

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
    """DOT source with a title; `svg` is laid out at first use.

    `tips` are what its parts say, by their names in the source. `drawn_as` has for each operator
    of the pass the order of the node that stands for it: node 5 is called `n5`. In a notebook it
    is shown as an image, which also works where the notebook is not trusted.
    """

    dot: str
    title: str
    tips: Mapping[str, str] = field(default_factory=dict)
    drawn_as: tuple[int | None, ...] = ()

    def node_of(self, order: int) -> str:
        """The name of the node that stands for an operator; empty where none does."""
        node = self.drawn_as[order] if order < len(self.drawn_as) else None
        return "" if node is None else f"n{node}"

    def operator_of(self, node: str) -> int | None:
        """The first operator that a node of that name stands for."""
        return next((o for o in range(len(self.drawn_as)) if self.node_of(o) == node), None)

    @cached_property
    def svg(self) -> str:
        """Raises `CannotDraw` where no layout program serves; `dot` is then still there."""
        return self._laid_out(never_cancelled)

    def prepare(self, cancelled: IsCancelled) -> None:
        """Lay out `svg` now; whoever asks for it later does so again if it is cancelled here."""
        with suppress(CannotDraw):
            if "svg" not in vars(self):
                vars(self)["svg"] = self._laid_out(cancelled)

    def _laid_out(self, cancelled: IsCancelled) -> str:
        return finish_svg(render(self.dot, cancelled=cancelled), self.title, self.tips)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `.svg`, `.dot`, `.png` or `.pdf`; the last two need the program `dot`.

        Raises `InvalidValue` for another ending and for a file that cannot be written, `NotOurs`
        for one that somebody else wrote, `CannotDraw` where the program is missing.
        """
        ending = resolve_path(path).suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue.must_be(
                "path", str(path), "a file ending in ." + ", .".join(FORMATS)
            )
        drawn = {"dot": lambda: self.dot.encode(), "svg": lambda: self.svg.encode()}
        content = drawn.get(ending, lambda: render(self.dot, ending))()
        return write_file(path, content, overwrite=overwrite)

    def picture(self) -> str:
        """HTML of the drawing as an image, which `viewer` brings to life where scripts run."""
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
        return f"{self.picture()}<script>(() => {{{viewer()}enliven(document);}})();</script>"

    def __repr__(self) -> str:
        return f"Graph({self.title!r}: .svg, .dot, .save(path))"


@cache
def viewer() -> str:
    """JavaScript whose `enliven(root)` makes pictures ones to pan, zoom, search and fold."""
    return resources.files("llmsim_magic.views.graphs").joinpath("viewer.js").read_text("utf-8")
