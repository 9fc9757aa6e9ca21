"""A drawing that shows itself in a notebook, and saves itself in the formats Graphviz knows."""

import base64
import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.svg import CannotDraw, render

FORMATS = ("svg", "dot", "png", "pdf")


@dataclass(frozen=True)
class Graph:
    """DOT source with a title; `svg` is laid out at first use.

    In a notebook it is shown as an image, which also works where the notebook is not trusted.
    """

    dot: str
    title: str

    @cached_property
    def svg(self) -> str:
        """Raises `CannotDraw` where no layout program serves; `dot` is then still there."""
        return render(self.dot).decode()

    def save(self, path: str | Path) -> Path:
        """Write `.svg`, `.dot`, `.png` or `.pdf`; the last two need the program `dot`.

        Raises `InvalidValue` for another ending, `CannotDraw` where the program is missing.
        """
        file = Path(path)
        ending = file.suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue("path", str(path), "a file ending in ." + ", .".join(FORMATS))
        if ending == "dot":
            file.write_text(self.dot, "utf-8")
        elif ending == "svg":
            file.write_text(self.svg, "utf-8")
        else:
            file.write_bytes(render(self.dot, ending))
        return file

    def _repr_html_(self) -> str:
        try:
            data = base64.b64encode(self.svg.encode()).decode()
        except CannotDraw as error:
            return f"<p>{html.escape(str(error))}</p><pre>{html.escape(self.dot)}</pre>"
        title = html.escape(self.title, quote=True)
        return (
            '<div style="overflow:auto;background:white;text-align:center">'
            f'<img alt="{title}" title="{title}" style="max-width:100%" '
            f'src="data:image/svg+xml;base64,{data}"/></div>'
        )

    def __repr__(self) -> str:
        return f"Graph({self.title!r}: .svg, .dot, .save(path))"
