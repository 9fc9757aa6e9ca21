"""trace(), sweep() and answer(): run the workloads asked for, and report."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmsim_magic.records.errors import InvalidValue, NoDecode
from llmsim_magic.records.trace import Trace
from llmsim_magic.records.workload import DEFAULT_CONTEXT, PHASES, Workload, grid
from llmsim_magic.simulate.export import writable
from llmsim_magic.simulate.loading import Progress, load, silent
from llmsim_magic.simulate.report import Report, Sweep
from llmsim_magic.simulate.request import Build, Request

if TYPE_CHECKING:
    from llmsim_magic.capture.weightless import Weightless

SWEEP_BATCHES = (1, 16)
SWEEP_CONTEXTS = (1, DEFAULT_CONTEXT)


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
    progress: Progress = silent,
) -> Report:
    """What `model` does in one forward pass, without its weights.

    `model` is a hub id, a local folder or `config.json`, a `PretrainedConfig`, or a live
    `nn.Module`, which is left as it was found. `context` counts tokens: 128, or as many as a
    short learned position table has rows. A module that is no HuggingFace model needs `inputs`:
    a tensor, a tuple of positional arguments or a dict of keywords.

    Raises `LlmsimError` with one line that names what was wrong and what is legal.

    >>> import llmsim_magic as llmsim
    >>> report = llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", context=128)
    >>> report.ops.loc[18, "input_shapes"]
    [(1, 1, 1024)]
    """
    build = Build(base, attn, dtype, trust_remote_code, refresh)
    wanted = Workload(phase, batch, DEFAULT_CONTEXT if context is None else context)
    weightless = load(model, build, progress)
    if inputs is not None:
        return _on_given(weightless, inputs)
    _needs_config(weightless)
    workload = _fitted(weightless, wanted, shorten=context is None)
    progress(f"tracing {workload}")
    return _report(_run(weightless, workload))


def sweep(
    model: Any,
    *,
    batch: Iterable[int] = SWEEP_BATCHES,
    context: Iterable[int] | None = None,
    phase: Iterable[str] = PHASES,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    trust_remote_code: bool = False,
    refresh: bool = False,
    progress: Progress = silent,
) -> Sweep:
    """The same model under every combination of phase, batch and context (1 and 128).

    A phase that does not exist for the model (decode of an encoder) is a sentence in `notes`.

    >>> import llmsim_magic as llmsim
    >>> sweep = llmsim.sweep("Qwen/Qwen3-0.6B", batch=[1], context=[128])
    >>> sweep.totals[["phase", "flops"]].values.tolist()
    [['prefill', 156330098688], ['decode', 1221558272]]
    """
    build = Build(base, attn, dtype, trust_remote_code, refresh)
    contexts = () if context is None else tuple(context)
    request = Request(model, ("multi-config",), tuple(phase), tuple(batch), contexts, build)
    return _sweep(load(model, build, progress), request, progress)


def answer(request: Request, progress: Progress = silent) -> Report:
    """Everything a request asks for, from one trace per workload."""
    if request.csv is not None:
        writable(request.csv)
    weightless = load(request.model, request.build, progress)
    _needs_config(weightless)
    many = "multi-config" in request.views
    several = max(map(len, (request.phases, request.batches, request.contexts))) > 1
    if many or several:
        found = _sweep(weightless, request, progress)
        views = request.views if many else (*request.views, "multi-config")
        traces = {trace.workload: trace for trace in found.traces}
        main = traces.get(Workload(), found.traces[0])
        report = _report(main, views, found, request)
    else:
        (wanted,) = grid(
            request.phases or ("prefill",),
            request.batches or (1,),
            request.contexts or (DEFAULT_CONTEXT,),
        )
        workload = _fitted(weightless, wanted, shorten=not request.contexts)
        progress(f"tracing {workload}")
        report = _report(_run(weightless, workload), request.views, None, request)
    if request.explained is not None:
        report.explain(request.explained)
    if request.csv is not None:
        progress(f"writing {request.csv}")
        report.to_csv(request.csv)
    return report


def _sweep(weightless: "Weightless", request: Request, progress: Progress) -> Sweep:
    _needs_config(weightless)
    phases = request.phases or PHASES
    batches = request.batches or SWEEP_BATCHES
    workloads = dict.fromkeys(
        _fitted(weightless, wanted, shorten=not request.contexts)
        for wanted in grid(phases, batches, request.contexts or SWEEP_CONTEXTS)
    )
    notes: dict[str, None] = {}
    traces: list[Trace] = []
    missing: set[str] = set()
    for place, workload in enumerate(workloads, 1):
        if workload.phase in missing:
            continue
        progress(f"workload {place} of {len(workloads)}: {workload}")
        try:
            traces.append(_run(weightless, workload))
        except NoDecode as error:
            if len(phases) == 1:
                raise
            missing.add(workload.phase)
            notes[str(error)] = None
    for trace in traces:
        notes.update(dict.fromkeys(trace.notes))
    return Sweep(tuple(traces), tuple(notes))


def _report(
    trace: Trace,
    views: tuple[str, ...] = ("summary",),
    found: Sweep | None = None,
    request: Request | None = None,
) -> Report:
    return Report(
        trace,
        views,
        found,
        explained=request.explained if request else None,
        depth=request.depth if request else None,
        notes=trace.notes,
    )


def _run(weightless: "Weightless", workload: Workload) -> Trace:
    from llmsim_magic.capture.run import run

    return run(weightless, workload)


def _fitted(weightless: "Weightless", wanted: Workload, *, shorten: bool) -> Workload:
    from llmsim_magic.capture.inputs import fitting

    return fitting(weightless.module, wanted, weightless.info.name, shorten=shorten)


def _on_given(weightless: "Weightless", inputs: Any) -> Report:
    from llmsim_magic.capture.run import run_given

    if isinstance(inputs, Mapping):
        return _report(run_given(weightless, (), inputs))
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return _report(run_given(weightless, args, {}))


def _needs_config(weightless: "Weightless") -> None:
    if not hasattr(getattr(weightless.module, "config", None), "get_text_config"):
        raise InvalidValue(
            "model",
            weightless.info.class_name,
            "a HuggingFace model: in Python, llmsim.trace(module, inputs=(x,)) traces any module",
        )
