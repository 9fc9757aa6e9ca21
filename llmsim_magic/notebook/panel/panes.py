"""The tabs of the panel: each prepares a view in a thread, then displays it."""

from typing import TYPE_CHECKING, Protocol

import ipywidgets as widgets

from llmsim_magic.notebook.panel.operators import Detail, GraphPicture, OnSelect, OperatorsPane
from llmsim_magic.notebook.panel.table import Table
from llmsim_magic.notebook.widgets import PageView
from llmsim_magic.records.trace.workload import IsCancelled
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.view import View
from llmsim_magic.views.pages.html_page import as_html
from llmsim_magic.views.section import Page

if TYPE_CHECKING:
    import pandas as pd


class Pane(Protocol):
    """One tab. `prepare` may take seconds; `show` displays the prepared result.

    `order` is the selected operator, if any.
    """

    widget: widgets.Widget

    def prepare(self, report: Report, cancelled: IsCancelled) -> None: ...

    def show(self, report: Report, order: int | None) -> None: ...


class PagePane:
    """A view displayed as the magic displays it."""

    def __init__(self) -> None:
        self.widget = PageView()

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        """Compute the tables and pictures, which the report caches."""
        report.content()

    def show(self, report: Report, order: int | None) -> None:
        self.widget.value = as_html(report.content(), has_script=False)


class TablePane:
    """A view displayed as one table."""

    def __init__(self, view: View[Report]) -> None:
        self._view = view
        self._report: Report | None = None
        self._table = Table()
        self._notes = widgets.HTML()
        self.widget = widgets.VBox([self._table.widget, self._notes])

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        self._table_of(report)

    def _table_of(self, report: Report) -> "pd.DataFrame":
        return self._view.tables(report)[self._view.main_table]

    def show(self, report: Report, order: int | None) -> None:
        if report is not self._report:
            self._report = report
            self._table.show(self._table_of(report))
            page = Page(report.title, (), notes=report.remarks())
            self._notes.value = as_html(page, has_script=False)


class GraphPane:
    """A view displayed as a graph, with the row and arithmetic of the selected node."""

    def __init__(
        self, view: View[Report], controls: tuple[widgets.Widget, ...], on_select: OnSelect
    ) -> None:
        self._view = view.name
        self._picture = GraphPicture(on_select)
        self._detail = Detail("Click a node, or find it by name, to see its row and arithmetic.")
        bar = widgets.HBox(controls)
        bar.add_class("llmsim-controls")
        beside = widgets.HBox([self._picture.widget, self._detail.widget])
        beside.add_class("llmsim-beside")
        self.widget = widgets.VBox([bar, beside])

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        report.drawings[self._view].prepare(cancelled)

    def show(self, report: Report, order: int | None) -> None:
        self._picture.show(report.drawings[self._view], order)
        self._detail.show(report, order)


def pane_of(view: View[Report], controls: tuple[widgets.Widget, ...], on_select: OnSelect) -> Pane:
    """The pane that displays a view; `controls` are the controls of graphs."""
    if view.pane == "operators":
        return OperatorsPane(on_select)
    if view.pane == "table":
        return TablePane(view)
    if view.pane == "graph":
        return GraphPane(view, controls, on_select)
    return PagePane()
