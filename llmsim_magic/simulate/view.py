"""View: one way to display a report, declared as a record. Imports no pandas."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from llmsim_magic.views.section import Figure, Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.views.graphs.graph import Graph

Subject = TypeVar("Subject")
Pane = Literal["page", "operators", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View(Generic[Subject]):
    """One way to display a report.

    Attributes:
        name: the flag of the magic, without `--`.
        title: the title of its tab in the panel.
        help: its line in `--help`.
        heading: returns what the answer is of: a view's subject, model and workload.
        headline: returns the figures that answer the question, three to six.
        sections: returns the pictures and tables of its answer.
        tables: returns its tables by file name.
        main_table: the table that the tab shows or downloads.
        python: the Python expression for the same result; `{}` takes the options of a graph.
        pane: how the panel displays it.
        draw: draws its graph, if it has one.
        compute: traces further workloads before the view is displayed, if it needs them.
        is_slow: its workloads take longer than all else, so that in Python they are traced when
            the report is displayed or the table is read.
        has_all_workloads: its tables describe every workload of a request, not the first.
        uses: names of options that only this view, and others that name them too, use.
    """

    name: str
    title: str
    help: str
    heading: Callable[[Subject], str]
    headline: Callable[[Subject], Iterable[Figure]]
    sections: Callable[[Subject], Iterable[Section]]
    tables: Callable[[Subject], "Mapping[str, pd.DataFrame]"]
    main_table: str
    python: str
    pane: Pane = "page"
    draw: "Callable[[Subject], Graph] | None" = None
    compute: Callable[[Subject], object] | None = None
    is_slow: bool = False
    has_all_workloads: bool = False
    uses: tuple[str, ...] = ()
