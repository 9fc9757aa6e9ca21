"""What a view is: one record that every front door reads. Light to import: no pandas."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from llmsim_magic.views.section import Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.graphs.graph import Graph

Subject = TypeVar("Subject")
Pane = Literal["page", "operators", "table", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View(Generic[Subject]):
    """One way to look at a report.

    `name` is the magic's flag, `help` its line of help, `title` the panel's tab. `sections` are
    the parts of the page, `tables` the files by name; `main_table` names the one that a tab shows
    or downloads. `draw` makes the graph of a view that has one. `pane` is how the panel shows it,
    and `python` the expression that gives the same from a `report`; `{}` takes the options of a
    graph. `compute` does what may trace further workloads, before anything is displayed.
    """

    name: str
    title: str
    help: str
    sections: Callable[[Subject], Iterable[Section]]
    tables: Callable[[Subject], "Mapping[str, pd.DataFrame]"]
    main_table: str
    python: str
    pane: Pane = "page"
    draw: "Callable[[Subject], Graph] | None" = None
    compute: Callable[[Subject], object] | None = None
