"""Take it with you: files by the browser or into a folder, and the code that makes the same."""

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

_LONGEST = 150  # bytes of a model's name, of the 255 of a file's
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # of Windows
Content = Callable[[Report, View[Report]], tuple[str, str]]  # the name and text of a file


class Export:
    """Buttons for what is shown; `say` is told what was written, or why it was not."""

    def __init__(
        self, say: Callable[[str, Exception | None], None], *, overwrite: bool = False
    ) -> None:
        self._say = say
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
            tooltip="tables, graphs and page of this tab, in a folder of their own",
        )
        self._save.on_click(self._write)
        self._line, self._call = Code(label="magic"), Code(label="Python")
        buttons = [button for button, _ in self._files.values()]
        bar = widgets.HBox([widgets.Label("Download"), *buttons, self._folder, self._save])
        bar.add_class("llmsim-controls")
        self.widget = widgets.VBox([bar, self._line, self._call])
        self.widget.layout.display = "none"  # until there is something to take

    def show(self, report: Report, request: Request, *, is_variable: bool) -> None:
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
            self._say("", error)
            return
        button.send_file(name, text)
        self._say(f"{name} is downloaded", None)

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
            self._say("", error)
            return
        names = ", ".join(file.name for file in written)
        self._say(f"wrote {names} into {folder}", None)


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
    """`Qwen3-0.6B-decode-1x128-ops`: the name of a file anywhere."""
    work = report.trace.workload
    last = report.trace.model.name.rpartition("/")[2]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in last)
    name = name.encode()[:_LONGEST].decode(errors="ignore").strip(".-")
    if not name or _DEVICE.match(name):
        name = f"model-{name}".strip("-")
    if report.sweep is not None:
        return f"{name}-{view.name}"
    return f"{name}-{work.phase}-{work.batch}x{work.context}-{view.name}"
