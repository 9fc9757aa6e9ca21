"""The panel's tabs: one per view; the open one is the view that the panel shows."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from llmsim_magic.notebook.panel.operators import OnSelect
from llmsim_magic.notebook.panel.panes import Pane, pane_of
from llmsim_magic.simulate.views import VIEWS

_NAMES = tuple(VIEWS)


class ViewTabs:
    """A tab per view.

    Attributes:
        panes: the content of the tabs, by name of the view.
        widget: the tabs.
    """

    def __init__(
        self,
        view: str,
        graph_controls: tuple[widgets.Widget, ...],
        on_select: OnSelect,
    ) -> None:
        self.panes: dict[str, Pane] = {
            name: pane_of(each, graph_controls, on_select) for name, each in VIEWS.items()
        }
        self.widget = widgets.Tab([pane.widget for pane in self.panes.values()])
        self.widget.titles = tuple(each.title for each in VIEWS.values())
        self.widget.selected_index = _NAMES.index(view)

    @property
    def view(self) -> str:
        """The name of the view whose tab is open."""
        return _NAMES[self.widget.selected_index or 0]

    def observe(self, on_open: Callable[[Any], object]) -> None:
        """Call a function whenever another tab is opened."""
        self.widget.observe(on_open, "selected_index")

    def mark_stale(self) -> None:
        """Grey out the tabs: they do not show what the controls request."""
        self.widget.add_class("llmsim-stale")

    def mark_current(self) -> None:
        """Undo `mark_stale`."""
        self.widget.remove_class("llmsim-stale")
