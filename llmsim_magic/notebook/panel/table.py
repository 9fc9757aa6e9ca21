"""A table to sort, search and choose columns and rows of; long ones are loaded as they are."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from itables.widget import ITable

from llmsim_magic.views.page import readable

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 12
_LAYOUT = {
    "topStart": {"buttons": [{"extend": "colvis", "text": "Columns"}]},
    "topEnd": "search",
    "bottomStart": "info",
    "bottomEnd": "paging",
}


class Table:
    """A DataFrame as a widget; `chosen` is told the label of the row that its user selects."""

    def __init__(self, chosen: Callable[[Any], None] | None = None) -> None:
        self._chosen = chosen
        self._labels: list[Any] = []
        self.selected: Any = None
        self.widget = ITable(text_in_header_can_be_selected=False)  # a click on it sorts
        self.widget.observe(self._row, "selected_rows")

    def show(self, frame: "pd.DataFrame", hidden: Collection[str] = (), row: Any = None) -> None:
        """Another table, with one of its rows selected and in sight."""
        self._labels = list(frame.index)
        cells = readable(frame.reset_index() if frame.index.name else frame)
        places = [place for place, name in enumerate(cells) if name in hidden]
        selected = self._labels.index(row) if row in self._labels else None
        self.selected = None if selected is None else row
        options: dict[str, Any] = {
            "layout": _LAYOUT,
            "pageLength": _ROWS,
            "maxBytes": 0,
            "text_in_header_can_be_selected": False,
            "showIndex": False,
            "columnDefs": [{"visible": False, "targets": places}] if places else [],
            "select": "single" if self._chosen else False,
            "selected_rows": [] if selected is None else [selected],
            "warn_on_undocumented_option": False,  # of the next one, which DataTables has
            "displayStart": (selected or 0) // _ROWS * _ROWS,
        }
        self.widget.update(cells, **options)

    def _row(self, change: Any) -> None:
        """Told of by the widget, or set here: then it is the one selected already."""
        row = self._labels[change["new"][0]] if change["new"] else None
        if self._chosen and row is not None and row != self.selected:
            self.selected = row
            self._chosen(row)
