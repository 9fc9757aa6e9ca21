"""Answer a request: the path from a model to a report that every interface uses."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

from llmsim_magic.records.errors import (
    InvalidValue,
    TooManyWorkloads,
    describe,
    type_name,
)
from llmsim_magic.records.trace.context_limits import ContextLimits, fit_context
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import (
    PHASES,
    TRAIN,
    IsCancelled,
    Workload,
    never_cancelled,
)
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import DevicePasses
from llmsim_magic.simulate.hardware.executions import (
    require_executions,
    require_executions_here,
)
from llmsim_magic.simulate.models.building import build_model, build_workload_model
from llmsim_magic.simulate.models.recipes import (
    ModelRecipe,
    Progress,
    model_recipe,
    no_progress,
    with_loss,
)
from llmsim_magic.simulate.models.workloads import (
    context_limits,
    longest_that_runs,
    trace_workload,
)
from llmsim_magic.simulate.option_effect import mark_ignored_context, require_effect_on_cache
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import MEASURED, Request
from llmsim_magic.simulate.sweeps.run_workloads import Outcomes, run_all
from llmsim_magic.simulate.sweeps.sweep import Sweep
from llmsim_magic.simulate.sweeps.workload_tracer import WorkloadTracer
from llmsim_magic.simulate.views import views_of
from llmsim_magic.views.notes import notes
from llmsim_magic.views.safe_files import as_path, check_writable

MAX_WORKLOADS = 1_000  # of a sweep without `sure`


def answer(
    request: Request,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
    *,
    recipe: ModelRecipe | None = None,
    loss: Callable[[Any], Any] | None = None,
    is_compared: bool = False,
    with_slow: bool = True,
) -> Report:
    """Trace every workload of a request once, and compute its views.

    Args:
        request: the model, its workloads and the views to show.
        progress: called with a message before each step.
        cancelled: polled between steps and inside a pass.
        recipe: how to build the model, if it is known already.
        loss: computes the loss of a training step; None for the model's own.
        is_compared: the model is the second of a comparison, whose options need an effect on one.
        with_slow: also compute the views that take longer than all else.

    Returns:
        The report, ready to display.

    Raises:
        LlmsimError: the model, a workload or a view is impossible; one line says why.
        Cancelled: cancelled before any workload was traced.
    """
    _check_files(request)
    known = recipe or model_recipe(request.model, request.build, progress, cancelled)
    known = with_loss(known, loss)
    compared = None
    if request.compare is not None:
        second = replace(request, model=request.compare, csv=None, json=None, compare=None)
        compared = answer(second, progress, cancelled, is_compared=True)
    for name in filter(MEASURED.__contains__, request.deployment.hardware):
        from llmsim_magic.simulate.hardware.local_device import benchmark_message, local

        trains = request.build.training is not None
        require_executions_here(request.deployment, name, trains=trains)
        progress(benchmark_message(name))
        local(name)
    sweep = trace_workloads(known, request, progress, cancelled)
    if not is_compared:
        beside = () if compared is None else (compared.trace,)
        require_effect_on_cache(request.deployment, (*sweep.traces, *beside))
    main = _main_trace(sweep)
    if request.contexts and sweep.tracer is not None:
        main = mark_ignored_context(main, sweep.tracer.trace)
    report = Report(
        trace=main,
        views=views_of(request),
        sweep=sweep if request.is_sweep else None,
        explained=request.explain,
        selection=request.selection,
        deployment=request.deployment,
        limits=request.limits,
        compared=compared,
        tracer=sweep.tracer,
        planner=CapacityPlanner(request.model, known.build, {known.build.parallel: known}),
    )
    _require_executions(report)
    if request.explain is not None:
        report.explain(request.explain)
    report.prepare(progress, cancelled, with_slow=with_slow)
    _write_files(report, request, progress)
    return report


def _check_files(request: Request) -> None:
    """Raise `InvalidValue` if what the request writes could not be written."""
    if request.csv is not None:
        check_writable(request.csv)
    if request.json_file is not None:
        check_writable(as_path(request.json_file).parent)


def _write_files(report: Report, request: Request, progress: Progress) -> None:
    if request.csv is not None:
        progress(f"writing {request.csv}")
        report.to_csv(request.csv, overwrite=request.overwrite)
    if request.json_file is not None:
        progress(f"writing {request.json_file}")
        report.to_json(request.json_file, overwrite=request.overwrite)


def answer_with_inputs(
    request: Request,
    inputs: Any,
    progress: Progress = no_progress,
    *,
    loss: Callable[[Any], Any] | None = None,
) -> Report:
    """Trace a pass, or a training step, of any module on given inputs.

    Args:
        request: the module and the views to show.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        progress: called with a message before each step.
        loss: computes the loss of a training step; None if the module returns it.

    Raises:
        InvalidValue: the inputs cannot be read.
        CannotTrace: the module cannot run on the inputs without weights.
    """
    recipe = model_recipe(request.model, request.build, progress)
    model = build_model(recipe, progress)
    from llmsim_magic.capture.inputs.given_inputs import positional_arguments
    from llmsim_magic.capture.run import run_with_inputs
    from llmsim_magic.capture.train.step import run_step_with_inputs

    training = request.build.training
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    try:
        if isinstance(inputs, Mapping):
            keywords = dict(inputs)
        else:
            args = positional_arguments(inputs)
    except Exception as error:  # a user's collection may raise anything
        raise InvalidValue(
            f"inputs of type {type_name(inputs)} cannot be read: {describe(error)}"
        ) from error
    replay = _replays(request.replay)
    if training is None:
        trace = run_with_inputs(model, args, keywords, replay=replay)
    else:
        trace = run_step_with_inputs(model, args, keywords, training, loss=loss, replay=replay)
    require_effect_on_cache(request.deployment, (trace,))
    report = Report(trace=trace, views=views_of(request), deployment=request.deployment)
    _require_executions(report)
    return report.prepare(progress)


def _require_executions(report: Report) -> None:
    """Raise `InvalidValue` where no runtime that was asked for executes the model."""
    for device in (None, *(device for device, _ in report.costing.devices)):
        require_executions(report.deployment, report.trace, device)


def timed_sweep(sweep: Sweep, request: Request) -> Sweep:
    """The sweep with the device whose times its totals have, if the request names one.

    Raises:
        LlmsimError: no time is predicted on the device.
    """
    if not request.deployment.hardware:
        return sweep
    passes = DevicePasses(tuple(sweep.traces), request.deployment)
    passes.executions()
    return replace(sweep, passes=passes)


def trace_workloads(
    recipe: ModelRecipe,
    request: Request,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
    executor: Executor | None = None,
) -> Sweep:
    """Trace every workload of a request, in this process or on an executor.

    Raises:
        LlmsimError: no workload can be traced, or there are too many.
        Cancelled: cancelled before any workload was traced.
    """
    limits = context_limits(recipe, progress, cancelled)
    replay = _replays(request.replay)
    asked = request.workloads
    if len(asked) > MAX_WORKLOADS and not request.sure:
        seconds = len(asked) * _seconds(recipe, asked[-1], replay, cancelled)
        raise TooManyWorkloads(len(asked), MAX_WORKLOADS, seconds)
    workloads = dict.fromkeys(
        _fit_context(recipe, limits, workload, shorten=not request.contexts) for workload in asked
    )
    outcomes = run_all(
        recipe,
        tuple(workloads),
        replay=replay,
        executor=executor,
        cancelled=cancelled,
        progress=progress,
    )
    representatives = outcomes.traces.representatives()
    found = dict.fromkeys(note for trace in representatives for note in notes(trace))
    return Sweep(
        traces=outcomes.traces,
        notes=(*outcomes.missing, *found, *_undone_note(outcomes)),
        failures=tuple((each.workload, each.reason) for each in outcomes.failed),
        undone=outcomes.undone,
        tracer=WorkloadTracer(
            partial(trace_workload, recipe, replay=replay),
            limits.positions,
            limits.declared,
            reads=PHASES[0] if recipe.build.training is None else TRAIN,
        ),
    )


def _undone_note(outcomes: Outcomes) -> tuple[str, ...]:
    if not outcomes.undone:
        return ()
    return (f"stopped early: {outcomes.undone} workloads were not traced",)


def _seconds(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled
) -> float:
    """Seconds that one workload takes after a first pass filled the caches."""
    model = build_workload_model(recipe)
    from llmsim_magic.capture.run import run

    run(model, workload, replay=replay, cancelled=cancelled)
    started = time.perf_counter()
    run(model, workload, replay=replay, cancelled=cancelled)
    return time.perf_counter() - started


def _replays(wanted: bool) -> bool:
    """Whether layers are replayed; LLMSIM_NO_REPLAY turns it off for a whole process."""
    return wanted and not os.environ.get("LLMSIM_NO_REPLAY")


def _main_trace(sweep: Sweep) -> Trace:
    """The trace that views of one workload show: first phase and batch, longest context."""
    first = sweep.traces[0].workload
    same = [
        trace
        for trace in sweep.traces
        if (trace.workload.phase, trace.workload.batch) == (first.phase, first.batch)
    ]
    return max(same, key=lambda trace: trace.workload.context)


def _fit_context(
    recipe: ModelRecipe, limits: ContextLimits, workload: Workload, *, shorten: bool
) -> Workload:
    longest = limits.positions
    tokens = workload.context + (workload.phase == "decode")
    if shorten and longest is None and tokens > (limits.declared or tokens):
        longest = longest_that_runs(recipe, tokens)
    return fit_context(longest, workload, recipe.name, shorten=shorten)
