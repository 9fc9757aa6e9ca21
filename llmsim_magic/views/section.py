"""A page of a report and its parts; importing it loads neither pandas nor a drawing library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.charts.chart import BarChart, Card, HeatMap, Scatter
    from llmsim_magic.views.explain import Explanation
    from llmsim_magic.views.graphs.graph import Graph
    from llmsim_magic.views.plots.plot import Plot

    Chart: TypeAlias = BarChart | HeatMap | Scatter
    Drawn: TypeAlias = Graph | Plot | Chart
    Body: TypeAlias = pd.DataFrame | Drawn | Explanation | Card | tuple[Drawn, ...]


class Picture:
    """What a notebook shows as an image; a terminal names it, and a file of its own keeps it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a headline.

    Attributes:
        value: the figure in people's units, such as `596 M`.
        label: what it counts, such as `parameters`.
        exact: the exact value, which a pointer shows.
        is_bad: whether it is a fault, such as memory that does not fit.
    """

    value: str
    label: str
    exact: str = ""
    is_bad: bool = False

    def __str__(self) -> str:
        return f"{self.value} {self.label}".strip()


@dataclass(frozen=True, slots=True)
class Section:
    """A title, a remark below it, and a table, card, chart, graph or text.

    Attributes:
        title: what the body shows.
        body: a table, a card, a text, a picture, or pictures side by side; of a table that a
            terminal leaves out, a function that makes it.
        remark: sentences below the title.
        is_detail: whether it is folded away below the answer.
        bars: columns of a table whose cells have a bar as long as their value.
    """

    title: str
    body: "Body | Callable[[], Body]"
    remark: str = ""
    is_detail: bool = False
    bars: tuple[str, ...] = ()

    def shown(self) -> "Body":
        """The body, made if it is not yet."""
        return self.body() if callable(self.body) else self.body


@dataclass(frozen=True, slots=True)
class Part:
    """The answer of one view: a headline of figures, then pictures and tables.

    Attributes:
        name: the name of the view.
        label: the name of the view for people, as in a table of contents.
        title: what it shows, and of which model and workload.
        figures: three to six figures that answer the question.
        sections: the pictures and tables, in the order in which they are shown.
    """

    name: str
    label: str
    title: str
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown of a report.

    Attributes:
        title: the model and its workload.
        parts: an answer for each view, in the order in which they were asked for.
        warnings: what does not fit, said before everything else.
        notes: what the answers assume, as sentences.
    """

    title: str
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
