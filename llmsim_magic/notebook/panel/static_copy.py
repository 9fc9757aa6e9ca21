"""What a notebook keeps of the panel, for where no widget lives: pictures and heads of tables."""

import html
from threading import Timer

from IPython.display import DisplayHandle, display

from llmsim_magic.simulate.report import Report
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.page import as_html

_ROWS = 60  # of a table
_LATER_S = 0.8  # after the last change


class StaticCopy:
    """An output of its own, of the class `name`, which the living panel hides."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handle: DisplayHandle | None = None
        self._timer = Timer(0, self._update)
        self._shown: tuple[Report, str] | None = None

    def show(self) -> None:
        self._handle = display(self._page(), raw=True, display_id=True)

    def keep(self, report: Report, line: str, *, at_once: bool) -> None:
        """Keep a report; if not at once, then when its user has stopped going to the next."""
        self._timer.cancel()
        self._shown = report, line
        if at_once:
            self._update()
        else:
            self._timer = Timer(_LATER_S, self._update)
            self._timer.daemon = True
            self._timer.start()

    def _page(self) -> dict[str, str]:
        if self._shown is None:
            return {"text/html": f'<div class="{self._name}"></div>', "text/plain": ""}
        report, line = self._shown
        sections = sorted(report.sections(), key=lambda part: not isinstance(part.body, Graph))
        page = as_html(sections, report.remarks(), _ROWS)
        said = f"<p><code>{html.escape(line)}</code></p>"
        return {"text/html": f'<div class="{self._name}">{said}{page}</div>', "text/plain": line}

    def _update(self) -> None:
        if self._handle is not None:
            self._handle.update(self._page(), raw=True)
