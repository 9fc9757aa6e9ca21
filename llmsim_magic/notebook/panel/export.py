"""The panel's export row: download files, save a folder, and copy the code of the request."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from llmsim_magic.notebook.code_export import magic_line, python_call
from llmsim_magic.notebook.widgets import Code, Download
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Request
from llmsim_magic.simulate.view import View
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views.csv_export import to_csv
from llmsim_magic.views.safe_files import write_files, written_message

Content = Callable[[Report, View[Report]], tuple[str, str]]  # the name and text of a file


class Export:
    """Download and Save buttons, and the code of the displayed report.

    The buttons are disabled unless the open tab shows what the controls request.

    `on_message` is called with what was written, `on_error` with the error if that fails.
    """

    def __init__(
        self,
        on_message: Callable[[str], None],
        on_error: Callable[[Exception], None],
        *,
        overwrite: bool = False,
    ) -> None:
        self._on_message = on_message
        self._on_error = on_error
        self._overwrite = overwrite
        self._report: Report | None = None
        self._view = VIEWS["summary"]
        self._files = {
            "CSV": (Download(label="CSV"), _csv),
            "SVG": (Download(label="SVG"), _svg),
            "DOT": (Download(label="DOT"), _dot),
            "HTML": (Download(label="HTML"), _html),
        }
        for button, content in self._files.values():
            button.on_msg(partial(self._send, content))
        self._folder = widgets.Text("tables", description="Folder", continuous_update=False)
        self._save = widgets.Button(
            description="Save",
            disabled=True,
            tooltip="save the tables, graphs and page of this tab in the folder",
        )
        self._save.on_click(self._write)
        self._line, self._call = Code(label="magic"), Code(label="Python")
        buttons = [button for button, _ in self._files.values()]
        bar = widgets.HBox([widgets.Label("Download"), *buttons, self._folder, self._save])
        bar.add_class("llmsim-row")
        self._code = widgets.VBox([self._line, self._call])
        self._code.layout.display = "none"  # until there is a report
        self.widget = widgets.VBox([bar, self._code])

    def show(self, report: Report, request: Request, *, is_variable: bool) -> None:
        """Offer the files and the code of a report."""
        self._report, self._view = report, VIEWS[request.views[0]]
        self._save.disabled = False
        self._code.layout.display = ""
        self._code.remove_class("llmsim-stale")
        for name, (button, _) in self._files.items():
            button.is_disabled = name in ("SVG", "DOT") and not report.drawings
        self._line.text = magic_line(request)
        self._call.text = python_call(request, is_variable=is_variable)

    def disable(self) -> None:
        """Offer no files: the open tab does not show what the controls request."""
        self._report = None
        self._save.disabled = True
        self._code.add_class("llmsim-stale")
        for button, _ in self._files.values():
            button.is_disabled = True

    def _send(self, content: Content, button: Download, *_: Any) -> None:
        if self._report is None:
            return
        try:
            name, text = content(self._report, self._view)
        except LlmsimError as error:
            self._on_error(error)
            return
        button.send_file(name, text)
        self._on_message(f"downloaded {name}")

    def _write(self, _: Any) -> None:
        if self._report is None:
            return
        report, view = self._report, self._view
        folder = Path(self._folder.value.strip() or ".").expanduser()
        try:
            files = report.files()
            files |= {
                report.file_name(view, f"{name}.dot"): graph.dot.encode()
                for name, graph in report.drawings.items()
            }
            files[report.file_name(view, f"{view.name}.html")] = report.page().encode()
            written = write_files(folder, files, overwrite=self._overwrite)
        except LlmsimError as error:
            self._on_error(error)
            return
        self._on_message(written_message(written))


def _csv(report: Report, view: View[Report]) -> tuple[str, str]:
    table = report.tables()[view.main_table]
    return report.file_name(view, f"{view.main_table}.csv"), to_csv(table).decode()


def _svg(report: Report, view: View[Report]) -> tuple[str, str]:
    return report.file_name(view, f"{view.name}.svg"), report.drawings[view.name].svg


def _dot(report: Report, view: View[Report]) -> tuple[str, str]:
    return report.file_name(view, f"{view.name}.dot"), report.drawings[view.name].dot


def _html(report: Report, view: View[Report]) -> tuple[str, str]:
    return report.file_name(view, f"{view.name}.html"), report.page()
