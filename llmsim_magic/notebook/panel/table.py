"""A sortable, searchable table widget with selectable columns and rows."""

import html
import json
import uuid
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from itables import JavascriptFunction
from itables.widget import ITable

from llmsim_magic.views.screen.cells import exact_cells, format_cells
from llmsim_magic.views.screen.columns import TEXTS, Column, declared
from llmsim_magic.views.screen.raw_cells import format_table

if TYPE_CHECKING:
    import pandas as pd

_ROWS_PER_PAGE = 12
_PLAIN = frozenset(TEXTS) - {"shapes"}  # kinds that need no second, exact text
_LAYOUT = {
    "topStart": {
        "buttons": [
            {
                "extend": "colvis",
                "text": "Columns",
                "background": False,
                "collectionLayout": "fixed three-column",
                "columns": ":not(.llmsim-exact)",
            }
        ]
    },
    "topEnd": "search",
    "bottomStart": "info",
    "bottomEnd": "paging",
}
_SHOW_EXACT = "function (cell, text, row) {cell.title = row[%d];}"
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

    def show(
        self,
        frame: "pd.DataFrame",
        hidden: Collection[str] = (),
        row: Any = None,
        columns: Mapping[str, Column] = MappingProxyType({}),
    ) -> None:
        """Show another table, with numbers in people's units and the exact ones on hover.

        Args:
            frame: the table.
            hidden: columns that the user can switch on.
            row: label of the row to select and scroll to.
            columns: how to show columns that `declared` does not know.
        """
        self._labels = list(frame.index)
        cells, definitions = _as_texts(frame, hidden, columns)
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
            "columnDefs": definitions,
            "select": "single" if self._on_select else False,
            "selected_rows": [],
            "drawCallback": JavascriptFunction(_SHOW_ROW % (-1 if selected is None else selected)),
        }
        # Updated without a selection, because the widget fails on rows that no longer exist.
        with self.widget.hold_sync():
            self.widget.selected_rows = []
            # itables formats each text by pandas' rules, which takes most of the time of a slider.
            self.widget.update(cells.head(0), **options)
            self.widget._dt_args = {**self.widget._dt_args, "data_json": _rows_json(cells)}
            self.widget._df = cells
        self.widget.selected_rows = [] if selected is None else [selected]

    def _select_row(self, change: Any) -> None:
        """Report a row that the user selected.

        `show` changes the selection too: to none, then to the row that is selected already.
        """
        row = self._labels[change["new"][0]] if change["new"] else None
        if self._on_select and row is not None and row != self.selected:
            self.selected = row
            self._on_select(row)


def _as_texts(
    frame: "pd.DataFrame", hidden: Collection[str], columns: Mapping[str, Column]
) -> "tuple[pd.DataFrame, list[dict[str, Any]]]":
    """A table's cells as text, and DataTables' definitions of its columns.

    After the columns of the table there is one more for each column of quantities or shapes, with
    the exact ones: it is never shown, and the column before is sorted by it.
    """
    table = frame.reset_index() if frame.index.name else frame
    known = {name: columns.get(name) or declared(name) for name in map(str, table)}
    plain = format_table(table[[name for name in table if known[str(name)].kind in _PLAIN]])
    cells: dict[str, list[str]] = {}
    exact: dict[str, list[str]] = {}
    places: dict[int, str] = {}
    heads = [column.head for column in known.values()]
    for place, (name, column) in enumerate(known.items()):
        head = column.head if heads.count(column.head) == 1 else name
        if name in plain:
            cells[head] = list(plain[name])
            continue
        values = list(table[name])
        keys = [id(value) if isinstance(value, list) else value for value in values]
        distinct = dict(zip(keys, values, strict=True))  # few: identical layers repeat them
        shown = [*distinct.values()]
        texts = dict(zip(distinct, format_cells(shown, column.kind), strict=True))
        digits = dict(zip(distinct, exact_cells(shown), strict=True))
        cells[head] = [texts[key] for key in keys]
        exact[f"exact {name}"] = [digits[key] for key in keys]
        places[place] = column.kind
    definitions: list[dict[str, Any]] = [
        {
            "targets": place,
            "orderData": len(cells) + shift,
            "className": "" if kind == "shapes" else "dt-right",
            "createdCell": JavascriptFunction(_SHOW_EXACT % (len(cells) + shift)),
        }
        for shift, (place, kind) in enumerate(places.items())
    ]
    is_hidden = [place for place, name in enumerate(known) if name in hidden]
    last = [len(cells) + shift for shift in range(len(exact))]
    definitions += [
        {"targets": last, "className": "llmsim-exact"},
        {"targets": is_hidden + last, "visible": False},
    ]
    return type(frame)(cells | exact, index=table.index, dtype=object), definitions


def _rows_json(cells: "pd.DataFrame") -> str:
    """The rows of a table of texts as DataTables reads them."""
    columns = []
    for name in cells:
        texts = cells[name].tolist()
        escaped = {text: html.escape(text, quote=False) for text in set(texts)}
        columns.append([escaped[text] for text in texts])
    return json.dumps(list(zip(*columns, strict=True)))
