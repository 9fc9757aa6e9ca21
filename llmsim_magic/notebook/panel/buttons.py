"""The panel's Trace and Cancel buttons, and its status line."""

import re
import traceback
from collections.abc import Callable

import ipywidgets as widgets

from llmsim_magic.notebook.widgets import Status
from llmsim_magic.records.errors import is_own, type_name

EMPTY_MESSAGE = "choose a model to see its operators, costs and memory"
_WORKLOAD_COUNT = re.compile(r"workload (\d+) of (\d+)")


class ButtonBar:
    """Trace and Cancel buttons, with a status line that shows progress and errors.

    Attributes:
        trace: the Trace button.
        cancel: the Cancel button; disabled while nothing is running.
        status: the status line.
    """

    def __init__(
        self,
        on_trace: Callable[[widgets.Button], None],
        on_cancel: Callable[[widgets.Button], None],
        twin: str,
    ) -> None:
        self.trace = widgets.Button(
            description="Trace",
            button_style="primary",
            tooltip="trace the model again, in case it changed",
        )
        self.cancel = widgets.Button(
            description="Cancel", disabled=True, tooltip="stop the running trace"
        )
        self.status = Status(message=EMPTY_MESSAGE, twin=twin)
        self.trace.on_click(on_trace)
        self.cancel.on_click(on_cancel)

    def set_busy(self, is_busy: bool) -> None:
        """Show whether a job is running; only then it can be cancelled."""
        self.status.is_busy = is_busy
        self.cancel.disabled = not is_busy

    def show_progress(self, message: str) -> None:
        """Show the message of a running job; "workload 3 of 8" also fills the progress bar."""
        count = _WORKLOAD_COUNT.search(message)
        self.status.fraction = (int(count[1]) - 1) / int(count[2]) if count else -1.0
        self.status.message = f"{message} …"

    def show_message(self, message: str) -> None:
        """Show a message, and clear the error."""
        self.status.message = message
        self.clear_error()

    def show_error(self, error: Exception) -> None:
        """Show an error as one line, with its traceback under "details"."""
        self.status.message = ""
        self.status.error = _one_line(error)
        self.status.details = "".join(traceback.format_exception(error))

    def clear_error(self) -> None:
        self.status.error = self.status.details = ""


def _one_line(error: Exception) -> str:
    """The message of an error of this package; the type and message of any other exception."""
    words = " ".join(str(error).split())
    return words if is_own(error) else f"{type_name(error)}: {words}"
