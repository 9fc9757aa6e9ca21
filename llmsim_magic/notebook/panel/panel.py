"""The panel: explore a model with dropdowns and sliders, the answers in tabs."""

import re
import traceback
import uuid
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import resources
from threading import RLock
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import display

from llmsim_magic.notebook.background_worker import Job, Worker
from llmsim_magic.notebook.code_export import magic_line
from llmsim_magic.notebook.kernel_interrupts import interrupts
from llmsim_magic.notebook.panel.controls import Controls
from llmsim_magic.notebook.panel.export import Export
from llmsim_magic.notebook.panel.model_choices import PanelModels, PanelQuestion
from llmsim_magic.notebook.panel.panes import Pane, pane_of
from llmsim_magic.notebook.panel.static_copy import StaticCopy
from llmsim_magic.notebook.variables import is_model
from llmsim_magic.notebook.widgets import Status
from llmsim_magic.records.errors import InvalidValue, LlmsimError, one_of, type_name
from llmsim_magic.records.trace.workload import DEFAULT_CONTEXT, Workload
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.options import request_of
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Request
from llmsim_magic.simulate.views import VIEWS

_KNOWN = 64  # answers that are shown again at once
_QUICK_S = 0.4  # so long a cell waits for its panel's first answer
_COUNTED = re.compile(r"workload (\d+) of (\d+)")
_EMPTY = "choose a model to see what it does and costs"


class NoNotebook(LlmsimError):
    """There is no front end that has widgets."""


class Panel:
    """Widgets that ask for a report and show it; `report` is the one shown last.

    Each change of a control asks anew. What was answered before is shown again at once; else a
    thread works on it, which the Cancel button and the kernel's interrupt stop.
    """

    def __init__(self, request: Request) -> None:
        self.report: Report | None = None
        shell = get_ipython()
        self._models = PanelModels({} if shell is None else shell.user_ns)
        if request.model is not None and not isinstance(request.model, str):
            request = replace(request, model=self._models.called(request.model))
        self.controls = Controls(request, self._models.names)
        name = f"llmsim-static-{uuid.uuid4().hex}"
        self.status = Status(message=_EMPTY, twin=name)
        self._kept = StaticCopy(name)
        self._order: int | None = None
        self._view = "summary"  # of the report that is shown
        self._known: OrderedDict[Any, Report] = OrderedDict()  # by what was asked
        self._showing = RLock()  # one answer at a time, whichever thread has it
        self._worker: Worker[Report] = Worker(self._done)
        self._is_shown = False
        drawing = self.controls.drawing
        self.panes: dict[str, Pane] = {
            name: pane_of(view, drawing, self.choose) for name, view in VIEWS.items()
        }
        self._trace = widgets.Button(description="Trace", button_style="primary")
        self._cancel = widgets.Button(description="Cancel", disabled=True)
        self._tabs = widgets.Tab([pane.widget for pane in self.panes.values()])
        self._tabs.titles = tuple(view.title for view in VIEWS.values())
        self._export = Export(self._say, overwrite=request.overwrite)
        self.widget = self._laid_out()
        self._tab_of_view()
        self._listen()

    # looks

    def _laid_out(self) -> widgets.Widget:
        style = resources.files(__package__).joinpath("panel.css").read_text("utf-8")
        controls = widgets.HBox(self.controls.of_model)
        controls.add_class("llmsim-controls")
        bar = widgets.HBox([self._trace, self._cancel, self.status])
        made = widgets.VBox(
            [
                widgets.HTML(f"<style>{style}</style>"),
                controls,
                bar,
                self._tabs,
                self._export.widget,
            ]
        )
        made.add_class("llmsim-panel")
        return made

    def _listen(self) -> None:
        for control in self.controls.asking:
            control.observe(self.refresh, "value")
        self.controls.view.observe(self._tab_of_view, "value")
        self._tabs.observe(self._view_of_tab, "selected_index")
        self._trace.on_click(self._anew)
        self._cancel.on_click(self.cancel)

    def _tab_of_view(self, _: Any = None) -> None:
        self._tabs.selected_index = list(VIEWS).index(self.controls.view.value)

    def _view_of_tab(self, _: Any) -> None:
        if self._tabs.selected_index is not None:
            self.controls.view.value = list(VIEWS)[self._tabs.selected_index]

    def show(self) -> None:
        """Display it, and below it what a notebook shows of it where no widget lives.

        Raises `NoNotebook` in a terminal.
        """
        if not hasattr(get_ipython(), "kernel"):
            raise NoNotebook("panel: it needs a notebook; here, try %llmsim gpt2 --ops")
        words = {"text/plain": repr(self)}
        display(self.widget._repr_mimebundle_() | words, raw=True)
        self._kept.show()
        if self.report is None and self.controls.model.value:
            thread = self.refresh()
            if thread is not None:
                thread.join(_QUICK_S)
        self._is_shown = True

    _ipython_display_ = show

    def __repr__(self) -> str:
        return f"Panel({self.controls.model.value!r}): run this cell for its dropdowns"

    # asking

    def refresh(self, _: Any = None) -> Any:
        """Show what the controls ask for; the thread that works on it, if one has to."""
        try:
            asked = self._asked()
        except LlmsimError as error:
            self._stop()
            self._say("", error)
            return None
        if asked is None:
            self._stop()
            self._say(_EMPTY)
            self._tabs.add_class("llmsim-stale")
            return None
        if asked.key in self._known:
            self._stop()
            self._show(asked, self._known[asked.key])
            return None
        thread = self._worker.take(Job(asked.key, partial(self._answer, asked)))
        if thread is not None:
            self.status.error = self.status.details = ""
            self._tabs.add_class("llmsim-stale")
            self._set_busy()
            thread.start()
        return thread

    def cancel(self, _: Any = None) -> None:
        """Stop what is running; what was shown before stays, greyed."""
        if self._stop():
            self._say("cancelled")

    def _stop(self) -> bool:
        was_running = self._worker.cancel()
        self._set_busy()
        return was_running

    def choose(self, order: int | None) -> None:
        """Show an operator's row, its arithmetic and its place in the graph."""
        self._order = order
        with self._showing:
            if self.report is not None:
                self.panes[self._view].show(self.report, order)

    def _anew(self, _: Any) -> None:
        """Ask about a model that may have changed: a variable, a folder."""
        with suppress(LlmsimError):
            asked = self._asked()
            if asked is not None and self._worker.job is None:
                self._models.forget(asked)
                for key in [key for key in self._known if key[0] == asked.which]:
                    del self._known[key]
        self.refresh()

    def _asked(self) -> PanelQuestion | None:
        request = self.controls.request()
        return self._models.asked(request) if request.model else None

    # working, in a thread

    def _answer(self, asked: PanelQuestion, job: Job[Report]) -> Report:
        interrupts.add(self.cancel)
        try:
            progress = partial(self._tell, job)
            recipe = self._models.recipe(asked, progress)
            request = replace(asked.request, model=asked.model)
            report = answer(request, progress, job.cancelled, recipe=recipe)
            progress("preparing the view")
            self.panes[request.views[0]].prepare(report, job.cancelled)
            return report
        finally:
            interrupts.remove(self.cancel)

    def _tell(self, job: Job[Report], message: str) -> None:
        if not job.cancelled():
            counted = _COUNTED.search(message)
            self.status.fraction = (int(counted[1]) - 1) / int(counted[2]) if counted else -1.0
            self.status.message = f"{message} …"

    def _done(self, job: Job[Report], result: Report | Exception) -> None:
        if isinstance(result, Report):
            self._known[job.key] = result
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
            try:
                asked = self._asked()
                if asked is not None and asked.key == job.key:
                    self._show(asked, result)
            except Exception as error:  # it would be lost with the thread
                self._say("", error)
        else:
            self._say("", result)
        self._set_busy()

    # answering

    def _show(self, asked: PanelQuestion, report: Report) -> None:
        with self._showing:
            self._order = self._same_operator(report)
            self.report = report
            self._view = asked.request.views[0]
            self.panes[self._view].show(report, self._order)
            self._export.show(report, asked.request, is_variable=asked.is_variable)
            self._say(f"{report.trace.model.class_name}: {_workload(report)}")
            self._tabs.remove_class("llmsim-stale")
            self._kept.keep(report, magic_line(asked.request), at_once=not self._is_shown)

    def _same_operator(self, report: Report) -> int | None:
        """The operator that is chosen, where another workload has it too."""
        order, shown = self._order, self.report
        if order is None or shown is None or order >= len(report.trace.paths):
            return None
        return order if report.trace.paths[order] == shown.trace.paths[order] else None

    def _say(self, message: str, error: Exception | None = None) -> None:
        """Tell how it went; what is shown is greyed where it is not what was asked for."""
        self.status.message = message
        self.status.error = "" if error is None else _in_one_line(error)
        self.status.details = "" if error is None else "".join(traceback.format_exception(error))
        if error is not None:
            self._tabs.add_class("llmsim-stale")

    def _set_busy(self) -> None:
        self.status.is_busy = self._worker.job is not None
        self._cancel.disabled = not self.status.is_busy


def panel(
    model: Any = None,
    *,
    view: str = "summary",
    phase: str = "prefill",
    batch: int = 1,
    context: int | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    hardware: str | None = None,
    trust_remote_code: bool = False,
) -> Panel:
    """Dropdowns and sliders to explore a model with, in a notebook.

    `model` is what `llmsim.trace` takes, or nothing to begin without one; `view` is one of
    summary, ops, multi-config, deps, topological, costs and memory; `hardware` names a device of
    the catalogue. Raises `InvalidValue` and `UnknownHardware`.
    """
    if view not in VIEWS:
        raise InvalidValue.must_be("view", view, one_of(VIEWS))
    if model is not None and not isinstance(model, str) and not is_model(model):
        raise InvalidValue.must_be(
            "model", type_name(model), "a name, a PretrainedConfig or a module"
        )
    workload = Workload(phase, batch, DEFAULT_CONTEXT if context is None else context)
    values = {
        "phase": (workload.phase,),
        "batch": (workload.batch,),
        "context": (workload.context,),
        "dtype": dtype,
        "attn": attn,
        "base": base,
        "hardware": () if hardware is None else (hardware,),
        "trust_remote_code": trust_remote_code,
    }
    return Panel(request_of(model, (view,), values))


def _workload(report: Report) -> str:
    many = report.sweep is not None and len(report.sweep.traces)
    return f"{many} workloads" if many else str(report.trace.workload)


def _in_one_line(error: Exception) -> str:
    """A mistake of the user's as it is told; of ours what it was."""
    words = " ".join(str(error).split())
    return words if isinstance(error, LlmsimError) else f"{type(error).__name__}: {words}"
