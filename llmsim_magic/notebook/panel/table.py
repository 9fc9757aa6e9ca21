"""A table to sort, search and choose columns and rows of; long ones are loaded as they are."""

import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from itables import JavascriptFunction
from itables.widget import ITable

from llmsim_magic.views.page import format_table

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 12
_LAYOUT = {
    "topStart": {
        "buttons": [
            {
                "extend": "colvis",
                "text": "Columns",
                "background": False,
                "collectionLayout": "fixed three-column",
            }
        ]
    },
    "topEnd": "search",
    "bottomStart": "info",
    "bottomEnd": "paging",
}
# Once drawn, the page that a row stands on, in whatever order the rows are.
_SHOW_ROW = """function (settings) {
  if (settings.isShown) return;
  settings.isShown = true;
  const table = this.api();
  setTimeout(() => {
    const rows = table.rows({order: "current", search: "applied"}).indexes();
    const place = rows.indexOf(%d);
    if (place >= 0) table.page(Math.floor(place / table.page.len())).draw("page");
  });
}"""


class Table:
    """A DataFrame as a widget; `chosen` is told the label of the row that its user selects."""

    def __init__(self, chosen: Callable[[Any], None] | None = None) -> None:
        self._chosen = chosen
        self._labels: list[Any] = []
        self.selected: Any = None
        self._name = f"llmsim-{uuid.uuid4().hex}"
        self.widget = ITable(text_in_header_can_be_selected=False)  # a click on it sorts
        self.widget.observe(self._row, "selected_rows")

    def show(self, frame: "pd.DataFrame", hidden: Collection[str] = (), row: Any = None) -> None:
        """Another table, with one of its rows selected and in sight."""
        self._labels = list(frame.index)
        cells = format_table(frame.reset_index() if frame.index.name else frame)
        places = [place for place, name in enumerate(cells) if name in hidden]
        selected = self._labels.index(row) if row in self._labels else None
        self.selected = None if selected is None else row
        options: dict[str, Any] = {
            "layout": _LAYOUT,
            "pageLength": _ROWS,
            "table_id": self._name,
            "style": "table-layout:auto;width:auto;margin:0",
            "stateSave": True,  # order, search and columns stay when other rows are shown
            "stateDuration": -1,
            "maxBytes": 0,
            "text_in_header_can_be_selected": False,
            "showIndex": False,
            "columnDefs": [{"visible": False, "targets": places}] if places else [],
            "select": "single" if self._chosen else False,
            "selected_rows": [],
            "drawCallback": JavascriptFunction(_SHOW_ROW % (-1 if selected is None else selected)),
        }
        # Made anew with none selected: else the widget stumbles over the selection it remembers.
        self.widget.selected_rows = []
        self.widget.update(cells, **options)
        self.widget.selected_rows = [] if selected is None else [selected]

    def _row(self, change: Any) -> None:
        """Told of by the widget, or set here: then it is the one selected already.

        None is selected while the widget makes a table anew: that says nothing.
        """
        row = self._labels[change["new"][0]] if change["new"] else None
        if self._chosen and row is not None and row != self.selected:
            self.selected = row
            self._chosen(row)
