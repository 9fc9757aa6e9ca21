"""trace(), sweep() and answer(): run the workloads asked for, and report."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmsim_magic.records.errors import (
    InvalidValue,
    TooManyWorkloads,
    describe,
    is_instance,
    type_name,
)
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import (
    DEFAULT_CONTEXT,
    PHASES,
    IsCancelled,
    Workload,
    grid,
    never_cancelled,
)
from llmsim_magic.records.validation import as_nonempty_tuple, as_tuple, flag, require_callable
from llmsim_magic.simulate.hardware.deployments import CapacityPlanner
from llmsim_magic.simulate.hardware.local_device import local
from llmsim_magic.simulate.models.recipes import (
    ModelRecipe,
    Progress,
    build_model,
    model_recipe,
    no_progress,
    require_config,
    trace_workload,
)
from llmsim_magic.simulate.report import Report, Sweep
from llmsim_magic.simulate.request import ALL, LOCAL, Build, Deployment, Request
from llmsim_magic.simulate.sweeps.formulas import WorkloadTracer
from llmsim_magic.simulate.sweeps.run_workloads import Outcomes, run_all
from llmsim_magic.views.safe_files import check_writable

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

SWEEP_BATCHES = (1, 16)
SWEEP_CONTEXTS = (1, DEFAULT_CONTEXT)
MOST = 1_000  # workloads of a sweep that nobody need be sure of


def trace(
    model: Any,
    *,
    phase: str = "prefill",
    batch: int = 1,
    context: int | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    inputs: Any = None,
    trust_remote_code: bool = False,
    refresh: bool = False,
    replay: bool = True,
    hardware: str | Iterable[str] = (),
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    launch: str = "graph",
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    progress: Progress = no_progress,
) -> Report:
    """What `model` does in one forward pass, without its weights.

    `model` is a hub id, a local folder or `config.json`, a `PretrainedConfig`, or a live
    `nn.Module`, which is left as it was found. `context` counts tokens: 128, or as many as a
    short learned position table has rows. A module that is no HuggingFace model needs `inputs`:
    a tensor, a tuple of positional arguments or a dict of keywords. Layers that are alike run
    once; `replay=False` runs each, for the same result.

    `hardware` names devices to predict times and memory on, or `local`; `weight_dtype` and
    `kv_dtype` say what is stored there, `launch` whether kernels are captured in a `graph` or
    started one by one (`eager`). With `tp`, `pp` or `ep` the part of one device is traced, by the
    model's own plans.

    Raises `LlmsimError` with one line that names what was wrong and what is legal.

    >>> import llmsim_magic as llmsim
    >>> report = llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", context=128)
    >>> report.ops.loc[18, "input_shapes"]
    [(1, 1, 1024)]
    """
    build = Build(base, attn, dtype, trust_remote_code, refresh, Parallel(tp, pp, ep))
    deployed = Deployment(as_tuple("hardware", hardware), weight_dtype, kv_dtype, launch)
    wanted = Workload(phase, batch, DEFAULT_CONTEXT if context is None else context)
    replay = flag("replay", replay)
    require_callable("progress", progress, "that takes a text")
    recipe = model_recipe(model, build, progress)
    weightless = build_model(recipe, progress)
    if inputs is not None:
        if (phase, batch, context) != ("prefill", 1, None):
            raise InvalidValue.must_be(
                "inputs", "with phase, batch or context", "given together with them"
            )
        return _showable(replace(_on_given(weightless, inputs, replay), deployed=deployed))
    require_config(weightless)
    workload = _fitted(weightless, wanted, shorten=context is None)
    progress(f"tracing {workload}")
    report = Report(
        trace_workload(recipe, workload, _replaying(replay)),
        ask=_asker(recipe, replay),
        deployed=deployed,
        sizer=CapacityPlanner(model, build, {build.parallel: recipe}),
    )
    return _showable(report)


def sweep(
    model: Any,
    *,
    batch: int | Iterable[int] = SWEEP_BATCHES,
    context: int | Iterable[int] | None = None,
    phase: str | Iterable[str] = PHASES,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    trust_remote_code: bool = False,
    refresh: bool = False,
    replay: bool = True,
    sure: bool = False,
    executor: Executor | None = None,
    cancelled: IsCancelled = never_cancelled,
    progress: Progress = no_progress,
) -> Sweep:
    """The same model under every combination of phase, batch and context (1 and 128).

    A phase that does not exist for the model (decode of an encoder) is a sentence in `notes`; a
    workload that fails is a row of `totals` with its reason. `executor` is any of
    `concurrent.futures`, or of `dask.distributed`; what it loses is traced here. Between
    workloads `cancelled` is asked; what is done by then is kept, as it is after an interrupt.

    Raises `LlmsimError` where no workload can be traced, or where there are more than 1,000 and
    nobody said that they are `sure`.

    >>> import llmsim_magic as llmsim
    >>> sweep = llmsim.sweep("Qwen/Qwen3-0.6B", batch=[1], context=[128])
    >>> sweep.totals[["phase", "cache_bytes"]].values.tolist()
    [['prefill', 14680064], ['decode', 14794752]]
    """
    build = Build(base, attn, dtype, trust_remote_code, refresh)
    contexts = () if context is None else as_nonempty_tuple("context", context)
    phases = (
        PHASES if is_instance(phase, str) and phase == "both" else as_nonempty_tuple("phase", phase)
    )
    if executor is not None and not hasattr(type(executor), "submit"):
        raise InvalidValue.must_be("executor", executor, "an executor of concurrent.futures")
    require_callable("cancelled", cancelled, "that says whether to stop")
    require_callable("progress", progress, "that takes a text")
    request = Request(
        model,
        ("multi-config",),
        phases,
        as_nonempty_tuple("batch", batch),
        contexts,
        build,
        replay=replay,
        sure=sure,
    )
    return _sweep(model_recipe(model, build, progress), request, executor, cancelled, progress)


def answer(request: Request, progress: Progress = no_progress) -> Report:
    """Everything a request asks for, from one trace per workload."""
    if request.csv is not None:
        check_writable(request.csv)
    recipe = model_recipe(request.model, request.build, progress)
    beside = None
    if request.beside is not None:
        other = model_recipe(request.beside, request.build, progress)
        beside = answer_of(other, replace(request, csv=None, beside=None), progress)
    return answer_of(recipe, request, progress, beside=beside)


def answer_of(
    recipe: ModelRecipe,
    request: Request,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
    beside: Report | None = None,
) -> Report:
    """The same of a model whose recipe is known, with another's report beside it.

    Raises `Cancelled` where it was cancelled before any workload was traced.
    """
    if LOCAL in request.deployed.hardware:
        progress("measuring this machine, once, for half a minute")
        local()
    many = request.is_sweep
    found = _sweep(recipe, request, None, cancelled, progress)
    report = Report(
        _main(found),
        tuple(dict.fromkeys((*request.views, "multi-config"))) if many else request.views,
        found if many else None,
        request.explained,
        request.drawn,
        found.ask,
        request.deployed,
        CapacityPlanner(request.model, recipe.build, {recipe.build.parallel: recipe}),
        beside,
    )
    if request.explained is not None:
        report.explain(request.explained)
    _showable(report)
    if request.csv is not None:
        progress(f"writing {request.csv}")
        report.to_csv(request.csv, overwrite=request.overwrite)
    return report


def _showable(report: Report) -> Report:
    """The same; what is asked of devices or memory is refused now, not when it is shown."""
    if report.costing.devices:
        _ = report.latency
    if ALL in report.deployed.hardware:
        _ = report.sizing
    if "memory" in report.views:
        _ = report.memory
    if report.beside is not None:
        _ = report.comparison
    return report


def _sweep(
    recipe: ModelRecipe,
    request: Request,
    executor: Executor | None,
    cancelled: IsCancelled,
    progress: Progress,
) -> Sweep:
    many = "multi-config" in request.views
    phases = request.phases or (PHASES if many else PHASES[:1])
    batches = request.batches or (SWEEP_BATCHES if many else SWEEP_BATCHES[:1])
    contexts = request.contexts or (SWEEP_CONTEXTS if many else SWEEP_CONTEXTS[1:])
    weightless = build_model(recipe, progress, cancelled)
    require_config(weightless)
    replay = _replaying(request.replay)
    number = len(phases) * len(batches) * len(contexts)
    if number > MOST and not request.sure:
        one = Workload(phases[-1], batches[-1], contexts[-1])
        raise TooManyWorkloads(number, MOST, number * _seconds(weightless, one, replay, cancelled))
    workloads = dict.fromkeys(
        _fitted(weightless, wanted, shorten=not request.contexts)
        for wanted in grid(phases, batches, contexts)
    )
    outcomes = run_all(
        recipe,
        tuple(workloads),
        replay=replay,
        executor=executor,
        cancelled=cancelled,
        progress=progress,
    )
    notes = dict.fromkeys(note for trace in outcomes.traces for note in trace.notes)
    return Sweep(
        outcomes.traces,
        (*outcomes.missing, *notes, *_left_out(outcomes)),
        tuple((each.workload, each.reason) for each in outcomes.failed),
        _asker(recipe, replay),
        outcomes.undone,
    )


def _left_out(outcomes: Outcomes) -> Iterator[str]:
    if outcomes.undone:
        yield f"stopped early: {outcomes.undone} of the workloads not traced"


def _seconds(
    weightless: "MetaModel", workload: Workload, replay: bool, cancelled: IsCancelled
) -> float:
    """How long a workload takes of a model that is warm, by doing one."""
    from llmsim_magic.capture.run import run

    run(weightless, workload, replay=replay, cancelled=cancelled)
    started = time.perf_counter()
    run(weightless, workload, replay=replay, cancelled=cancelled)
    return time.perf_counter() - started


def _asker(recipe: ModelRecipe, replay: bool) -> WorkloadTracer:
    weightless = build_model(recipe)
    return WorkloadTracer(
        partial(trace_workload, recipe, replay=_replaying(replay)),
        weightless.longest_context,
        weightless.declared_context,
    )


def _replaying(wanted: bool) -> bool:
    """Whether layers are replayed: not where the environment says no, for tests of all else."""
    return wanted and not os.environ.get("LLMSIM_NO_REPLAY")


def _main(found: Sweep) -> Trace:
    """The workload that single views show: the first phase and batch, the longest context."""
    first = found.traces[0].workload
    alike = [
        trace
        for trace in found.traces
        if (trace.workload.phase, trace.workload.batch) == (first.phase, first.batch)
    ]
    return max(alike, key=lambda trace: trace.workload.context)


def _fitted(weightless: "MetaModel", wanted: Workload, *, shorten: bool) -> Workload:
    from llmsim_magic.capture.inputs.context_length import fit_context

    return fit_context(weightless.longest_context, wanted, weightless.info.name, shorten=shorten)


def _on_given(weightless: "MetaModel", inputs: Any, replay: bool) -> Report:
    from llmsim_magic.capture.run import run_with_inputs

    args, keywords = (), {}
    try:
        if isinstance(inputs, Mapping):
            keywords = dict(inputs)
        else:
            args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    except Exception as error:  # of a collection of the user's own
        raise InvalidValue.must_be(
            "inputs", type_name(inputs), f"readable: {describe(error)}"
        ) from error
    return Report(run_with_inputs(weightless, args, keywords, replay=_replaying(replay)))
