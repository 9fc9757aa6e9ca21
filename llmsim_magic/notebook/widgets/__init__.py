"""Widgets that ipywidgets does not have: a graph, a status line, a download, text to copy."""

from importlib import resources
from typing import Any

import anywidget
from traitlets import Bool, Float, Unicode

from llmsim_magic.views.graph_viewer.script import viewer
from llmsim_magic.views.pages.html_page import script as page_script


def _script(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


class Drawing(anywidget.AnyWidget):
    """A graph to zoom, search and fold.

    Attributes:
        picture: the SVG.
        chosen: the name of the selected node, such as `n5`.
        window: maximum height as a fraction of the screen; 0 for no limit.
    """

    _esm = viewer() + _script("drawing.js")
    picture = Unicode().tag(sync=True)
    chosen = Unicode().tag(sync=True)
    window = Float().tag(sync=True)


class PageView(anywidget.AnyWidget):
    """A page of a report, as HTML, whose folded layers open.

    Attributes:
        value: the HTML.
    """

    _esm = page_script() + _script("page.js")
    value = Unicode().tag(sync=True)


class Status(anywidget.AnyWidget):
    """A status line with a progress bar and an error, announced to screen readers.

    Attributes:
        message: what is running or was done.
        is_busy: show the progress bar.
        fraction: progress from 0 to 1; negative if unknown.
        error: the error in one line.
        details: its traceback.
        twin: CSS class of the static copy, which the live widget hides.
    """

    _esm = _script("status.js")
    message = Unicode().tag(sync=True)
    is_busy = Bool().tag(sync=True)
    fraction = Float(-1.0).tag(sync=True)
    error = Unicode().tag(sync=True)
    details = Unicode().tag(sync=True)
    twin = Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.on_msg(self._reply)

    def _reply(self, *_: Any) -> None:
        """Reply to the browser, which checks whether the kernel responds."""
        self.send("here")


class Download(anywidget.AnyWidget):
    """A download button: it sends a message, and `send_file` replies with the file."""

    _esm = _script("download.js")
    label = Unicode().tag(sync=True)
    is_disabled = Bool(True).tag(sync=True)

    def send_file(self, name: str, content: str) -> None:
        """Let the browser save a text file."""
        self.send({"name": name}, buffers=[content.encode()])


class Code(anywidget.AnyWidget):
    """Text with a copy button."""

    _esm = _script("code.js")
    label = Unicode().tag(sync=True)
    text = Unicode().tag(sync=True)
