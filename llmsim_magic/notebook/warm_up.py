"""Import what a first answer needs while the user types, once the kernel is idle."""

import _thread
import re
import sys
import threading
from typing import Any

from llmsim_magic.capture.first_imports import DEPENDENCIES, MODULES, load_libraries
from llmsim_magic.records.background_import import BackgroundImport, import_step, is_imported
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt

_QUIET_S = 0.1  # of an idle kernel
_CELL_BEGINS_S = 0.05
# Of every answer, in a notebook, also of a model that was asked before.
_SHOWN = (
    "llmsim_magic.simulate.answer",
    "llmsim_magic.views.charts.summary_card",
    "llmsim_magic.views.tables.summary",
    "llmsim_magic.views.pages.html_page",
    "rich.console",
    "rich.table",
)
_STATEMENT = re.compile(
    r"^\s*(?:import\s+(?P<names>[\w., ]+)|from\s+(?P<name>\w[\w.]*)\s+import\b)"
)
_LAZY = re.compile(r"\b(?:torch|transformers|exec|runpy)\b|import")
_MAGIC = re.compile(r"^\s*%+(?!llmsim|config|time|timeit|capture)\w")


class WarmUp:
    """Runs the imports between the cells of a kernel.

    Attributes:
        is_wanted: whether to begin after the next cell; set by `%config LLMSim.warm_up`.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self._job: BackgroundImport | None = None

    def before_cell(self, info: Any) -> None:
        """Hold the imports during a cell; one that may import the same waits for the current."""
        if self._job is None or not self._job.is_running:
            return
        try:
            with DeferredInterrupt(insists=False):
                self._job.hold(finishes_step=may_import(str(info.raw_cell)))
        except KeyboardInterrupt:
            # IPython would show it as an error of this callback, and run the cell all the same.
            threading.Timer(_CELL_BEGINS_S, _thread.interrupt_main).start()

    def after_cell(self, result: object) -> None:
        """Begin the imports, or go on with them."""
        if self._job is not None and self._job.is_running:
            self._job.resume()
        elif self.is_wanted:
            self._start()

    def _start(self) -> None:
        """Import in a thread what is not imported yet."""
        self.is_wanted = False
        missing = [name for name in (*_SHOWN, *DEPENDENCIES, *MODULES) if name not in sys.modules]
        if not set(missing) & {*_SHOWN, *MODULES}:
            return
        steps = [import_step(name) for name in missing]
        if "torch" in missing:
            steps.insert(missing.index("torch"), load_libraries)
        self._job = BackgroundImport(steps, _QUIET_S)
        self._job.start()

    def stop(self) -> None:
        """Begin no further import."""
        self.is_wanted = False
        if self._job is not None:
            self._job.stop()


def may_import(source: str) -> bool:
    """Whether a cell may import more than the standard library and what is imported already."""
    for line in source.splitlines():
        if _MAGIC.match(line):
            return True
        if _LAZY.search(line) is None:
            continue
        match = _STATEMENT.match(line)
        if match is None:
            return True
        names = match["name"] or match["names"]
        if not all(_is_at_hand(each.split()[0]) for each in names.split(",") if each.strip()):
            return True
    return False


def _is_at_hand(name: str) -> bool:
    """Whether a module is imported, or of the standard library; torch's may import more."""
    top = name.partition(".")[0]
    if top in ("torch", "transformers"):
        return False
    return top in sys.stdlib_module_names or is_imported(name)


warm_up = WarmUp()
