"""The panel's export row: download files, save a folder, and copy the code of the request."""

import re
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
from llmsim_magic.views.safe_files import write_files

_MAX_NAME_BYTES = 150  # of a model's name, so that file names stay below 255 bytes
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
Content = Callable[[Report, View[Report]], tuple[str, str]]  # the name and text of a file


class Export:
    """Download and Save buttons, and the code of the displayed report.

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
            tooltip="save the tables, graphs and page of this tab in a new folder",
        )
        self._save.on_click(self._write)
        self._line, self._call = Code(label="magic"), Code(label="Python")
        buttons = [button for button, _ in self._files.values()]
        bar = widgets.HBox([widgets.Label("Download"), *buttons, self._folder, self._save])
        bar.add_class("llmsim-controls")
        self.widget = widgets.VBox([bar, self._line, self._call])
        self.widget.layout.display = "none"  # until there is a report

    def show(self, report: Report, request: Request, *, is_variable: bool) -> None:
        """Offer the files and the code of a report."""
        self._report, self._view = report, VIEWS[request.views[0]]
        self._save.disabled = False
        self.widget.layout.display = ""
        for name, (button, _) in self._files.items():
            button.is_disabled = name in ("SVG", "DOT") and not report.drawings
        self._line.text = magic_line(request)
        self._call.text = python_call(request, is_variable=is_variable)

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
        folder = Path(self._folder.value.strip() or ".").expanduser() / _stem(
            self._report, self._view
        )
        try:
            files = self._report.files()
            drawings = self._report.drawings.items()
            files |= {f"{name}.dot": graph.dot.encode() for name, graph in drawings}
            files["report.html"] = self._report.page().encode()
            written = write_files(folder, files, overwrite=self._overwrite)
        except LlmsimError as error:
            self._on_error(error)
            return
        names = ", ".join(file.name for file in written)
        self._on_message(f"wrote {names} into {folder}")


def _csv(report: Report, view: View[Report]) -> tuple[str, str]:
    table = report.tables()[view.main_table]
    return f"{_stem(report, view)}.csv", to_csv(table).decode()


def _svg(report: Report, view: View[Report]) -> tuple[str, str]:
    return f"{_stem(report, view)}.svg", report.drawings[view.name].svg


def _dot(report: Report, view: View[Report]) -> tuple[str, str]:
    return f"{_stem(report, view)}.dot", report.drawings[view.name].dot


def _html(report: Report, view: View[Report]) -> tuple[str, str]:
    return f"{_stem(report, view)}.html", report.page()


def _stem(report: Report, view: View[Report]) -> str:
    """A file name that every system accepts, such as `Qwen3-0.6B-decode-1x128-ops`."""
    work = report.trace.workload
    last = report.trace.model.name.rpartition("/")[2]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in last)
    name = name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(".-")
    if not name or _WINDOWS_DEVICE.match(name):
        name = f"model-{name}".strip("-")
    if report.sweep is not None:
        return f"{name}-{view.name}"
    return f"{name}-{work.phase}-{work.batch}x{work.context}-{view.name}"
