"""A line that says what is being done while it takes long, and goes when it is done."""

import html
import sys
import time
from types import TracebackType

from IPython.display import DisplayHandle, display

from llmsim_magic.records.printable import printable

PATIENCE_S = 1.0


class ProgressLine:
    """Shows messages once a second has passed, or at once while torch is still to be imported."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._handle: DisplayHandle | None = None

    def __enter__(self) -> "ProgressLine":
        return self

    def say(self, message: str) -> None:
        waited = time.monotonic() - self._started
        if waited < PATIENCE_S and "torch" in sys.modules:
            return
        self._show(f"⏳ {printable(message)} …")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._show("")

    def _show(self, text: str) -> None:
        content = {
            "text/plain": text,
            "text/html": f'<span role="status">{html.escape(text)}</span>',
        }
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
