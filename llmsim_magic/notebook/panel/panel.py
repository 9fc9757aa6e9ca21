"""The panel: explore a model with dropdowns and sliders; each view is a tab."""

import uuid
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import resources
from threading import RLock, Thread
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import display

from llmsim_magic.notebook.background_worker import Job, Worker
from llmsim_magic.notebook.code_export import magic_line
from llmsim_magic.notebook.kernel_interrupts import interrupts
from llmsim_magic.notebook.panel.buttons import EMPTY_MESSAGE, ButtonBar
from llmsim_magic.notebook.panel.controls import Controls
from llmsim_magic.notebook.panel.export import Export
from llmsim_magic.notebook.panel.model_choices import ModelChoices, PanelQuestion
from llmsim_magic.notebook.panel.static_copy import StaticCopy
from llmsim_magic.notebook.panel.tabs import ViewTabs
from llmsim_magic.notebook.variables import is_model
from llmsim_magic.records.errors import InvalidValue, LlmsimError, one_of, type_name
from llmsim_magic.records.trace.training import DEFAULT_OPTIMIZER
from llmsim_magic.records.trace.workload import DEFAULT_CONTEXT, Workload
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.option_effect import require_panel_options
from llmsim_magic.simulate.options import request_of
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import ALL, Request
from llmsim_magic.simulate.views import VIEWS

_MAX_REPORTS = 64
_FIRST_REPORT_WAIT_S = 0.4  # for which `show` waits, so that a fast report appears at once


class NoNotebook(LlmsimError):
    """The panel was displayed outside a notebook."""


class Panel:
    """Dropdowns and sliders that request a report, and tabs that display it.

    Each change of a control requests a report. A cached report is displayed at once; any other
    is computed in a thread, which the Cancel button and the kernel's interrupt stop.

    Attributes:
        report: the report that is displayed; None before the first one.
        controls: the dropdowns and sliders.
        panes: the tabs, by name of the view.
        status: the status line.
        widget: the whole panel.

    Raises:
        InvalidValue: an option that the panel lacks, or several values of one.
    """

    def __init__(self, request: Request) -> None:
        require_panel_options(request)
        self.report: Report | None = None
        shell = get_ipython()
        self._models = ModelChoices({} if shell is None else shell.user_ns)
        if request.model is not None and not isinstance(request.model, str):
            request = replace(request, model=self._models.name_of(request.model))
        self._order: int | None = None  # of the selected operator
        self._view = "summary"  # of the displayed report
        self._reports: OrderedDict[Any, Report] = OrderedDict()  # by question
        self._display_lock = RLock()  # one report is displayed at a time
        self._worker: Worker[Report] = Worker(self._on_job_end)
        self._is_shown = False
        static_class = f"llmsim-static-{uuid.uuid4().hex}"
        self._static_copy = StaticCopy(static_class)
        self.controls = Controls(request, self._models.names)
        self._buttons = ButtonBar(self._trace_again, self.cancel, static_class)
        self.status = self._buttons.status
        self._tabs = ViewTabs(
            request.views[0] if request.views else self._view,
            self.controls.drawing,
            self.select_operator,
        )
        self.panes = self._tabs.panes
        self._export = Export(
            self._buttons.show_message, self._buttons.show_error, overwrite=request.overwrite
        )
        self.widget = self._layout()
        for control in self.controls.observed:
            control.observe(self.refresh, "value")
        self._tabs.observe(self.refresh)
        self.controls.disable_unused(self._tabs.view)

    def _layout(self) -> widgets.Widget:
        style = resources.files(__package__).joinpath("panel.css").read_text("utf-8")
        css = widgets.HTML(f"<style>{style}</style>")
        model = widgets.HBox([self.controls.model, self._buttons.trace, self._buttons.cancel])
        model.add_class("llmsim-row")
        options = widgets.HBox(self.controls.options)
        options.add_class("llmsim-controls")
        bars = (model, options, self.status, self._tabs.widget, self._export.widget)
        box = widgets.VBox([css, *bars])
        box.add_class("llmsim-panel")
        return box

    def show(self) -> None:
        """Display the panel, and below it a static copy for viewers without widgets.

        Raises:
            NoNotebook: there is no notebook kernel.
        """
        if not hasattr(get_ipython(), "kernel"):
            raise NoNotebook(
                "the panel needs a notebook; in a terminal, use for example %llmsim gpt2 --ops"
            )
        display(self.widget._repr_mimebundle_() | {"text/plain": repr(self)}, raw=True)
        self._static_copy.show()
        if self.report is None and self.controls.model.value:
            thread = self.refresh()
            if thread is not None:
                thread.join(_FIRST_REPORT_WAIT_S)
        self._is_shown = True

    _ipython_display_ = show

    def __repr__(self) -> str:
        return f"Panel({self.controls.model.value!r}): run this cell to display its widgets"

    def refresh(self, _: Any = None) -> Thread | None:
        """Display the report that the controls request.

        Returns:
            The thread that computes the report; None if none is needed.
        """
        self.controls.disable_unused(self._tabs.view)
        try:
            question = self._question()
        except LlmsimError as error:
            self._stop()
            self._show_error(error)
            return None
        if question is None:
            self._stop()
            self._buttons.show_message(EMPTY_MESSAGE)
            self._mark_stale()
            return None
        if question.key in self._reports:
            self._stop()
            self._display(question, self._reports[question.key])
            return None
        thread = self._worker.take(Job(question.key, partial(self._compute, question)))
        if thread is not None:
            self._buttons.clear_error()
            self._mark_stale()
            self._update_busy()
            thread.start()
        return thread

    def cancel(self, _: Any = None) -> None:
        """Stop the running job; the displayed report stays, greyed out."""
        if self._stop():
            self._buttons.show_message("cancelled")

    def _stop(self) -> bool:
        was_running = self._worker.cancel()
        self._update_busy()
        return was_running

    def select_operator(self, order: int | None) -> None:
        """Select an operator by its `order`, or none: shows its row, arithmetic and node."""
        self._order = order
        with self._display_lock:
            if self.report is not None:
                self.panes[self._view].show(self.report, order)

    def _trace_again(self, _: Any) -> None:
        """Drop the cached reports of the model, which may be a variable or folder that changed."""
        with suppress(LlmsimError):
            question = self._question()
            if question is not None and self._worker.job is None:
                self._models.forget(question)
                for key in [key for key in self._reports if key[0] == question.model_key]:
                    del self._reports[key]
        self.refresh()

    def _question(self) -> PanelQuestion | None:
        """What the controls request; None without a model."""
        request = self.controls.request(self._tabs.view)
        return self._models.question(request) if request.model else None

    def _compute(self, question: PanelQuestion, job: Job[Report]) -> Report:
        """Compute a report, in the thread of its job."""

        def progress(message: str) -> None:
            if not job.cancelled():
                self._buttons.show_progress(message)

        interrupts.add(self.cancel)
        try:
            recipe = self._models.recipe(question, progress, job.cancelled)
            request = replace(question.request, model=question.model)
            report = answer(request, progress, job.cancelled, recipe=recipe)
            progress("preparing the view")
            self.panes[request.views[0]].prepare(report, job.cancelled)
            return report
        finally:
            interrupts.remove(self.cancel)

    def _on_job_end(self, job: Job[Report], result: Report | Exception) -> None:
        """Cache the report and display it if the controls still request it."""
        if isinstance(result, Report):
            self._reports[job.key] = result
            while len(self._reports) > _MAX_REPORTS:
                self._reports.popitem(last=False)
            try:
                question = self._question()
                if question is not None and question.key == job.key:
                    self._display(question, result)
            except Exception as error:  # an exception in a thread would go unnoticed
                self._show_error(error)
        else:
            self._show_error(result)
        self._update_busy()

    def _display(self, question: PanelQuestion, report: Report) -> None:
        with self._display_lock:
            self._order = self._same_operator(report)
            self.report = report
            self._view = question.request.views[0]
            self.panes[self._view].show(report, self._order)
            self._export.show(report, question.request, is_variable=question.is_variable)
            self._buttons.show_message(f"{report.trace.model.class_name}: {_workload(report)}")
            self._tabs.mark_current()
            self._static_copy.keep(report, magic_line(question.request), at_once=not self._is_shown)

    def _same_operator(self, report: Report) -> int | None:
        """The selected operator, if the new report has the same one."""
        order, shown = self._order, self.report
        if order is None or shown is None or order >= len(report.trace.paths):
            return None
        return order if report.trace.paths[order] == shown.trace.paths[order] else None

    def _show_error(self, error: Exception) -> None:
        self._buttons.show_error(error)
        self._mark_stale()

    def _mark_stale(self) -> None:
        """Grey out the tabs and offer no files, until the requested report is displayed."""
        self._tabs.mark_stale()
        self._export.disable()

    def _update_busy(self) -> None:
        self._buttons.set_busy(self._worker.job is not None)


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
    runtime: str | None = None,
    optimizer: str = DEFAULT_OPTIMIZER,
    precision: str | None = None,
    checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> Panel:
    """Explore a model with dropdowns and sliders in a notebook.

    Args:
        model: a hub id, a path, a config or a live module, as in `trace`; None starts without
            a model.
        view: the tab to open: summary, ops, multi-config, deps, topological, costs or memory.
        phase: `prefill`, `decode` or `train`.
        batch: number of sequences.
        context: tokens per sequence; by default 128.
        dtype: `bfloat16`, `float16` or `float32`; by default the config's.
        attn: `sdpa` or `eager`; by default the model's.
        base: leave out the head, as `AutoModel` does.
        hardware: a device of the catalogue to predict time and memory for.
        runtime: `transformers`, `vllm` or `all`; by default as in `trace`.
        optimizer: of a training step, as in `trace`.
        precision: of a training step, as in `trace`.
        checkpointing: of a training step, as in `trace`.
        trust_remote_code: run code from the model's repository.

    Returns:
        The panel; it displays itself as the last value of a cell.

    Raises:
        InvalidValue: an unknown view, or an illegal value.
        UnknownHardware: the catalogue has no such device.

    >>> import llmsim_magic as llmsim
    >>> llmsim.panel("gpt2", view="ops", hardware="H100")
    Panel('gpt2'): run this cell to display its widgets
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
        "runtime": runtime,
        "optimizer": optimizer,
        "precision": precision,
        "checkpointing": checkpointing,
        "trust_remote_code": trust_remote_code,
    }
    _require_one_device(hardware)
    return Panel(request_of(model, (view,), values))


def _require_one_device(hardware: str | None) -> None:
    if hardware == ALL:
        raise InvalidValue(
            f"hardware={ALL!r} is not for the panel, which shows one device at a time; name one, "
            f"or use llmsim.trace or llmsim.size with hardware={ALL!r}"
        )


def _workload(report: Report) -> str:
    count = report.sweep is not None and len(report.sweep.traces)
    return f"{count} workloads" if count else str(report.trace.workload)
