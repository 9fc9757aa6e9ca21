"""A sortable, searchable table widget with selectable columns and rows."""

import uuid
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from itables import JavascriptFunction
from itables.widget import ITable

from llmsim_magic.views.screen.raw_cells import format_table

if TYPE_CHECKING:
    import pandas as pd

_ROWS_PER_PAGE = 12
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
# After the first draw, opens the page of a row, in the current sort order.
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
    """A DataFrame as a widget; `on_select` is called with the label of the selected row."""

    def __init__(self, on_select: Callable[[Any], None] | None = None) -> None:
        self._on_select = on_select
        self._labels: list[Any] = []
        self.selected: Any = None
        self._name = f"llmsim-{uuid.uuid4().hex}"
        self.widget = ITable(text_in_header_can_be_selected=False)  # a click sorts
        self.widget.observe(self._select_row, "selected_rows")

    def show(self, frame: "pd.DataFrame", hidden: Collection[str] = (), row: Any = None) -> None:
        """Show another table.

        Args:
            frame: the table.
            hidden: columns that the user can switch on.
            row: label of the row to select and scroll to.
        """
        self._labels = list(frame.index)
        cells = format_table(frame.reset_index() if frame.index.name else frame)
        places = [place for place, name in enumerate(cells) if name in hidden]
        selected = self._labels.index(row) if row in self._labels else None
        self.selected = None if selected is None else row
        options: dict[str, Any] = {
            "layout": _LAYOUT,
            "pageLength": _ROWS_PER_PAGE,
            "table_id": self._name,
            "style": "table-layout:auto;width:auto;margin:0",
            "stateSave": True,  # order, search and columns stay when other rows are shown
            "stateDuration": -1,
            "maxBytes": 0,
            "text_in_header_can_be_selected": False,
            "showIndex": False,
            "columnDefs": [{"visible": False, "targets": places}] if places else [],
            "select": "single" if self._on_select else False,
            "selected_rows": [],
            "drawCallback": JavascriptFunction(_SHOW_ROW % (-1 if selected is None else selected)),
        }
        # Updated without a selection, because the widget fails on rows that no longer exist.
        self.widget.selected_rows = []
        self.widget.update(cells, **options)
        self.widget.selected_rows = [] if selected is None else [selected]

    def _select_row(self, change: Any) -> None:
        """Report a row that the user selected.

        `show` changes the selection too: to none, then to the row that is selected already.
        """
        row = self._labels[change["new"][0]] if change["new"] else None
        if self._on_select and row is not None and row != self.selected:
            self.selected = row
            self._on_select(row)
