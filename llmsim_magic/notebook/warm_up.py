"""Import what a first answer needs while the user types, once the kernel is idle."""

import sys

from llmsim_magic.capture.first_imports import MODULES, load_libraries
from llmsim_magic.records.background_import import BackgroundImport, import_step

_QUIET_S = 0.1  # of an idle kernel
# Of every answer, in a notebook, also of a model that was asked before.
_SHOWN = (
    "llmsim_magic.simulate.answer",
    "llmsim_magic.views.charts.summary_card",
    "llmsim_magic.views.tables.summary",
    "llmsim_magic.views.pages.html_page",
    "rich.console",
    "rich.table",
)


class WarmUp:
    """Starts the imports at most once, and stops them."""

    def __init__(self) -> None:
        self._job: BackgroundImport | None = None

    def start(self) -> None:
        """Import in a thread what is not imported yet; nothing if it has begun."""
        missing = [name for name in (*_SHOWN, *MODULES) if name not in sys.modules]
        if not missing or (self._job is not None and self._job.is_running):
            return
        steps = [import_step(name) for name in missing]
        if "torch" in missing:
            steps.insert(missing.index("torch"), load_libraries)
        self._job = BackgroundImport(steps, _QUIET_S)
        self._job.start()

    def stop(self) -> None:
        """Begin no further import."""
        if self._job is not None:
            self._job.stop()


warm_up = WarmUp()
