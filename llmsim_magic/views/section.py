"""A part of a page. Light to import: the libraries that draw its body are not loaded here."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.explain import Explanation
    from llmsim_magic.views.graphs.graph import Graph
    from llmsim_magic.views.plots.plot import Plot


@dataclass(frozen=True, slots=True)
class Section:
    """A title, a table, graph, plot or text, and a remark below the title."""

    title: str
    body: "pd.DataFrame | Graph | Plot | Explanation"
    remark: str = ""
