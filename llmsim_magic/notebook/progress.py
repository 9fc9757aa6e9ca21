"""A progress line below a cell, which disappears when the work is done."""

import html
import sys
import time
from types import TracebackType

from IPython.display import DisplayHandle, display

from llmsim_magic.records.printable import printable

DELAY_S = 1.0


class ProgressLine:
    """Shows messages after one second, or immediately if torch is not imported yet."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._handle: DisplayHandle | None = None

    def __enter__(self) -> "ProgressLine":
        return self

    def update(self, message: str) -> None:
        """Show a message in place of the one before."""
        waited = time.monotonic() - self._started
        if waited < DELAY_S and "torch" in sys.modules:
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
