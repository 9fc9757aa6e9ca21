"""Small widgets that ipywidgets has not: a drawing, a status, a download, a copied text."""

from importlib import resources
from typing import Any

import anywidget
from traitlets import Bool, Float, Unicode

from llmsim_magic.views.graphs.graph import viewer


def _script(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


class Drawing(anywidget.AnyWidget):
    """A graph to zoom, search and fold; `chosen` is the name of the node that is marked, `n5`.

    `window` is the share of the screen's height that a long one is seen through; 0 for all of it.
    """

    _esm = viewer() + _script("drawing.js")
    picture = Unicode().tag(sync=True)
    chosen = Unicode().tag(sync=True)
    window = Float().tag(sync=True)


class Status(anywidget.AnyWidget):
    """What is being done and how far it is, or the error it ended with, told to readers too.

    `fraction` is of the work, or below 0 where nobody knows. While it is alive it hides `twin`, the
    class of what a notebook without scripts shows.
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
        self.on_msg(self._answer)

    def _answer(self, *_: Any) -> None:
        """Whoever asks whether the kernel hears."""
        self.send("here")


class Download(anywidget.AnyWidget):
    """A button that asks for a file, which the browser then saves: answer with `send_file`."""

    _esm = _script("download.js")
    label = Unicode().tag(sync=True)
    is_disabled = Bool(True).tag(sync=True)

    def send_file(self, name: str, content: str) -> None:
        self.send({"name": name}, buffers=[content.encode()])


class Code(anywidget.AnyWidget):
    """A text to copy."""

    _esm = _script("code.js")
    label = Unicode().tag(sync=True)
    text = Unicode().tag(sync=True)
