"""The panel's tabs: one per view, kept in step with the View dropdown."""

from typing import Any

import ipywidgets as widgets

from llmsim_magic.notebook.panel.operators import OnSelect
from llmsim_magic.notebook.panel.panes import Pane, pane_of
from llmsim_magic.simulate.views import VIEWS


class ViewTabs:
    """A tab per view; opening a tab selects its view, and selecting a view opens its tab.

    Attributes:
        panes: the content of the tabs, by name of the view.
        widget: the tabs.
    """

    def __init__(
        self,
        view: widgets.Dropdown,
        graph_controls: tuple[widgets.Widget, ...],
        on_select: OnSelect,
    ) -> None:
        self._view = view
        self.panes: dict[str, Pane] = {
            name: pane_of(each, graph_controls, on_select) for name, each in VIEWS.items()
        }
        self.widget = widgets.Tab([pane.widget for pane in self.panes.values()])
        self.widget.titles = tuple(each.title for each in VIEWS.values())
        self._open_tab()

    def observe(self) -> None:
        """Start to keep the open tab and the dropdown in step."""
        self._view.observe(self._open_tab, "value")
        self.widget.observe(self._select_view, "selected_index")

    def mark_stale(self) -> None:
        """Grey out the tabs: they do not show what the controls request."""
        self.widget.add_class("llmsim-stale")

    def mark_current(self) -> None:
        """Undo `mark_stale`."""
        self.widget.remove_class("llmsim-stale")

    def _open_tab(self, _: Any = None) -> None:
        self.widget.selected_index = list(VIEWS).index(self._view.value)

    def _select_view(self, _: Any) -> None:
        if self.widget.selected_index is not None:
            self._view.value = list(VIEWS)[self.widget.selected_index]
