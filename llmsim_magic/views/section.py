"""A part of a report; importing it loads neither pandas nor a drawing library."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.explain import Explanation
    from llmsim_magic.views.graphs.graph import Graph
    from llmsim_magic.views.plots.plot import Plot


@dataclass(frozen=True, slots=True)
class Section:
    """A title, a remark below it, and a table, graph, plot or text."""

    title: str
    body: "pd.DataFrame | Graph | Plot | Explanation"
    remark: str = ""
