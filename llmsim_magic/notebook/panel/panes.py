"""The tabs of the panel: each prepares a view in a thread, then displays it."""

from typing import Protocol

import ipywidgets as widgets

from llmsim_magic.notebook.panel.operators import Detail, GraphPicture, OnSelect, OperatorsPane
from llmsim_magic.notebook.panel.page_parts import PageParts, PreparedPage
from llmsim_magic.notebook.widgets import PageView
from llmsim_magic.records.trace.workload import IsCancelled
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.view import View
from llmsim_magic.views.pages.html_page import as_html


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
        self._prepared = PreparedPage()

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        self._prepared.prepare(report)

    def show(self, report: Report, order: int | None) -> None:
        self.widget.value = as_html(self._prepared.of(report), has_script=False)


class GraphPane:
    """A view displayed as a graph, with the row and arithmetic of the selected node."""

    def __init__(
        self, view: View[Report], controls: tuple[widgets.Widget, ...], on_select: OnSelect
    ) -> None:
        self._view = view.name
        self._report: Report | None = None
        self._picture = GraphPicture(on_select)
        self._detail = Detail("Click a node, or find it by name, to see its row and arithmetic.")
        self._page = PageParts(view.name)
        bar = widgets.HBox(controls)
        bar.add_class("llmsim-controls")
        self.widget = widgets.VBox(
            [
                self._page.above,
                bar,
                self._picture.widget,
                self._detail.widget,
                self._page.below,
            ]
        )

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        report.drawings[self._view].prepare(cancelled)
        self._page.prepare(report)

    def show(self, report: Report, order: int | None) -> None:
        self._picture.show(report.drawings[self._view], order)
        self._detail.show(report, order)
        if report is not self._report:
            self._report = report
            self._page.show(report)


def pane_of(view: View[Report], controls: tuple[widgets.Widget, ...], on_select: OnSelect) -> Pane:
    """The pane that displays a view; `controls` are the controls of graphs."""
    if view.pane == "operators":
        return OperatorsPane(on_select)
    if view.pane == "graph":
        return GraphPane(view, controls, on_select)
    return PagePane()
