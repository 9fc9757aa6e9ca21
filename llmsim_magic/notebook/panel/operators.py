"""The Operators tab: a filtered table, with the arithmetic and the graph of the selected row."""

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from llmsim_magic.notebook.panel.page_parts import PageParts
from llmsim_magic.notebook.panel.table import Table
from llmsim_magic.notebook.widgets import Drawing
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import IsCancelled
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.explain import Explanation, explain_operator
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.pages.html_page import as_html
from llmsim_magic.views.screen.columns import Column
from llmsim_magic.views.section import Page, Part, Section
from llmsim_magic.views.tables.operators import filter_operators, layer_indices

if TYPE_CHECKING:
    import pandas as pd

OnSelect = Callable[[int | None], None]  # called with the order of an operator, or None
_NAMES = ["path", "op"]
_COSTS = ["flops", "bytes_read", "bytes_written", "params"]
_SHAPES = ["input_shapes", "output_shapes"]
_SHOWN = frozenset({*_NAMES, "flops", "bytes_read", "params", "output_shapes"})
_ALL, _OUTSIDE = ("all", ""), ("outside of layers", (None,))


class Detail:
    """The row and the arithmetic of the selected operator; a hint if none is selected."""

    def __init__(self, hint: str) -> None:
        self._hint = f"<p>{hint}</p>"
        self.widget = widgets.HTML(self._hint)

    def show(self, report: Report, order: int | None) -> None:
        if order is None:
            self.widget.value = self._hint
            return
        row = Section(f"Operator {order}", report.ops.loc[[order], [*_NAMES, *_COSTS, *_SHAPES]])
        arithmetic = Section("Its arithmetic", Explanation(explain_operator(report.trace, order)))
        page = Page("", (Part("operator", "", "", (), (row, arithmetic)),))
        self.widget.value = as_html(page, has_script=False)


class GraphPicture:
    """A graph in which the user or the caller selects an operator."""

    def __init__(self, on_select: OnSelect, window: float = 0.0) -> None:
        self.widget = Drawing(window=window)
        self._on_select = on_select
        self._graph: Graph | None = None
        self._order: int | None = None
        self.widget.observe(self._select_node, "chosen")

    def show(self, graph: Graph, order: int | None) -> None:
        self._order = order
        if graph is not self._graph:
            self._graph = graph
            self.widget.picture = graph.picture()
        # The browser finds the node that the operator is drawn in: layers may be open there.
        self.widget.chosen = f"n{order}" if order is not None and graph.node_of(order) else ""

    def hide(self) -> None:
        self._graph = self._order = None
        self.widget.picture = self.widget.chosen = ""

    def _select_node(self, change: Any) -> None:
        """Select the operator of the clicked node, unless it is selected already."""
        order = None if self._graph is None else self._graph.operator_of(change["new"])
        if order is not None and order != self._order:
            self._on_select(order)


class OperatorsPane:
    """The table of operators, with the arithmetic and the graph of the selected one."""

    def __init__(self, on_select: OnSelect) -> None:
        self._on_select = on_select
        self._report: Report | None = None
        self._order: int | None = None
        self._graph: Graph | None = None
        self._table = Table(on_select)
        self._detail = Detail("Select a row to see its arithmetic and its place in the graph.")
        self._place = GraphPicture(on_select, window=0.5)
        self._layer = widgets.Dropdown(description="Layer", options=[_ALL])
        self._kind = widgets.Dropdown(
            description="Kind", options=[_ALL, *((kind, kind) for kind in ("module", "function"))]
        )
        self._path = widgets.Text(
            description="Path", placeholder="part of a path", continuous_update=False
        )
        self._number = widgets.Text(
            description="Operator", placeholder="its number", continuous_update=False
        )
        self._refusal = widgets.HTML()  # of the number
        self._number.observe(self._select_number, "value")
        filters = [self._layer, self._kind, self._path]
        for control in filters:
            control.observe(self._apply_filters, "value")
        bar = widgets.HBox([*filters, self._number])
        bar.add_class("llmsim-controls")
        beside = widgets.HBox([self._detail.widget, self._place.widget])
        beside.add_class("llmsim-beside")
        self._page = PageParts("ops")
        self.widget = widgets.VBox(
            [
                self._page.above,
                bar,
                self._refusal,
                self._table.widget,
                beside,
                self._page.below,
            ]
        )

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        """Compute the page around the table."""
        self._page.prepare(report)

    def show(self, report: Report, order: int | None) -> None:
        is_new = report is not self._report
        if is_new:
            self._set_layers(report)
            self._page.show(report)
        if is_new or order != self._order:
            self._order = order
            if is_new or order != self._table.selected:
                self._apply_filters()
            self._show_operator(report, order)

    def _set_layers(self, report: Report) -> None:
        self._report, self._graph = None, None
        options = [_ALL, _OUTSIDE, *((str(layer), (layer,)) for layer in layer_indices(report.ops))]
        if list(self._layer.options) != options:
            self._layer.options = options
        self._report = report

    def _show_operator(self, report: Report, order: int | None) -> None:
        self._detail.show(report, order)
        self._number.value = "" if order is None else str(order)
        if order is None:
            self._place.hide()
            return
        self._graph = self._graph or report.dependency_graph()
        self._place.show(self._graph, order)

    def _apply_filters(self, _: Any = None) -> None:
        if self._report is not None:
            times = _times(self._report)
            table = self._matching(self._report).join(times)
            first = [*_NAMES, *times, *_COSTS, *_SHAPES]
            ordered = first + [name for name in table if name not in first]
            hidden = {*ordered} - {*_SHOWN, *times.columns[:1]}
            columns = {str(name): Column(str(name), "seconds") for name in times}
            self._table.show(table[ordered], hidden, self._order, columns)

    def _matching(self, report: Report) -> "pd.DataFrame":
        """The rows that pass the filters; the selected one may not be among them."""
        return filter_operators(
            report.ops,
            path=self._path.value.strip(),
            layers=self._layer.value or None,
            kind=self._kind.value or None,
        )

    def _select_number(self, change: Any) -> None:
        """Select the operator of a typed number; an illegal one stays, with an error."""
        report, text = self._report, change["new"].strip()
        if report is None:
            return
        operators = len(report.ops)
        is_legal = not text or (text in map(str, range(operators)))
        self._refusal.value = "" if is_legal else _refusal(text, operators)
        if is_legal and text != ("" if self._order is None else str(self._order)):
            self._on_select(int(text) if text else None)


def _times(report: Report) -> "pd.DataFrame":
    """Seconds of each operator on the device, with a column for each execution."""
    found = report.ops[[]].copy()
    executions = report.costing.executions() if report.costing.devices else ()
    for execution in executions:
        rows = report.times
        is_own = (rows["runtime"] == execution.runtime) & (rows["launch"] == execution.launch)
        head = "time" if len(executions) == 1 else f"time ({execution})"
        found[head] = rows.loc[is_own, "time_s"]
    return found


def _refusal(text: str, operators: int) -> str:
    """The error of an operator's number that is none of 0 to `operators` - 1, as HTML."""
    error = InvalidValue.must_be("operator", text, f"a whole number from 0 to {operators - 1}")
    return f'<span role="alert" class="llmsim-error">{html.escape(str(error))}</span>'
