"""A static copy of the panel in the saved notebook, for viewers that cannot run widgets."""

import html
from threading import Timer

from IPython.display import DisplayHandle, display

from llmsim_magic.simulate.report import Report
from llmsim_magic.views.pages.html_page import as_html

_MAX_ROWS = 60  # of a table
_UPDATE_DELAY_S = 0.8  # after the last change


class StaticCopy:
    """A separate output with the CSS class `name`, which the live panel hides."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: DisplayHandle | None = None
        self._timer = Timer(0, self._update)
        self._shown: tuple[Report, str] | None = None

    def show(self) -> None:
        """Display the output."""
        self._handle = display(self._page(), raw=True, display_id=True)

    def keep(self, report: Report, line: str, *, at_once: bool) -> None:
        """Replace the copy, immediately or once the user stops changing controls.

        Args:
            report: the displayed report.
            line: its line of the magic.
            at_once: do not wait for further changes.
        """
        self._timer.cancel()
        self._shown = report, line
        if at_once:
            self._update()
        else:
            self._timer = Timer(_UPDATE_DELAY_S, self._update)
            self._timer.daemon = True
            self._timer.start()

    def _page(self) -> dict[str, str]:
        if self._shown is None:
            return {"text/html": f'<div class="{self._name}"></div>', "text/plain": ""}
        report, line = self._shown
        page = as_html(report.content(), _MAX_ROWS)
        code = f"<p><code>{html.escape(line)}</code></p>"
        return {"text/html": f'<div class="{self._name}">{code}{page}</div>', "text/plain": line}

    def _update(self) -> None:
        if self._handle is not None:
            self._handle.update(self._page(), raw=True)
