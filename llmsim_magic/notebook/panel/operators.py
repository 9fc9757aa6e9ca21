"""The Operators tab: a filtered table, with the arithmetic and the graph of the selected row."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from llmsim_magic.notebook.panel.table import Table
from llmsim_magic.notebook.widgets import Drawing
from llmsim_magic.records.trace.workload import IsCancelled
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.explain import Explanation, explain_operator
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.pages.html_page import as_html
from llmsim_magic.views.section import Page, Part, Section
from llmsim_magic.views.tables.operators import filter_operators, layer_indices

if TYPE_CHECKING:
    import pandas as pd

OnSelect = Callable[[int | None], None]  # called with the order of an operator, or None
_DEFAULT_COLUMNS = ["path", "op", "layer", "params", "flops", "bytes_read", "bytes_written",
             "input_shapes", "output_shapes"]  # fmt: skip
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
        row = Section(f"Operator {order}", report.ops.loc[[order], _DEFAULT_COLUMNS])
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
        self._number.observe(self._select_number, "value")
        filters = [self._layer, self._kind, self._path]
        for control in filters:
            control.observe(self._apply_filters, "value")
        bar = widgets.HBox([*filters, self._number])
        bar.add_class("llmsim-controls")
        beside = widgets.HBox([self._detail.widget, self._place.widget])
        beside.add_class("llmsim-beside")
        self.widget = widgets.VBox([bar, self._table.widget, beside])

    def prepare(self, report: Report, cancelled: IsCancelled) -> None:
        """Compute the table, which the report caches."""
        _ = report.ops

    def show(self, report: Report, order: int | None) -> None:
        is_new = report is not self._report
        if is_new:
            self._set_layers(report)
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
            table = self._matching(self._report)
            hidden = [str(name) for name in table if name not in _DEFAULT_COLUMNS]
            self._table.show(table[_DEFAULT_COLUMNS + hidden], hidden, self._order)

    def _matching(self, report: Report) -> "pd.DataFrame":
        """The rows that pass the filters; all rows if the filters would hide the selected one."""
        table = filter_operators(
            report.ops,
            path=self._path.value.strip(),
            layers=self._layer.value or None,
            kind=self._kind.value or None,
        )
        return report.ops if self._order is not None and self._order not in table.index else table

    def _select_number(self, change: Any) -> None:
        """Select the operator of a typed number; restore the field if there is none."""
        report, text = self._report, change["new"].strip()
        if report is None or text == ("" if self._order is None else str(self._order)):
            return
        if text and not (text.isdecimal() and int(text) < len(report.ops)):
            self._number.value = "" if self._order is None else str(self._order)
        else:
            self._on_select(int(text) if text else None)
