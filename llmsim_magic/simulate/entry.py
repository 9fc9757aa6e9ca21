"""trace(), sweep() and answer(): run the workloads asked for, and report."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

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
Value = TypeVar("Value", int, str)


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
        if (phase, batch, context) != ("prefill", 1, None):
            raise InvalidValue("inputs", "with phase, batch or context", "given together with them")
        return _on_given(weightless, inputs)
    _needs_config(weightless)
    workload = _fitted(weightless, wanted, shorten=context is None)
    progress(f"tracing {workload}")
    return Report(_run(weightless, workload))


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
    progress: Progress = silent,
) -> Sweep:
    """The same model under every combination of phase, batch and context (1 and 128).

    A phase that does not exist for the model (decode of an encoder) is a sentence in `notes`.

    >>> import llmsim_magic as llmsim
    >>> sweep = llmsim.sweep("Qwen/Qwen3-0.6B", batch=[1], context=[128])
    >>> sweep.totals[["phase", "cache_bytes"]].values.tolist()
    [['prefill', 14680064], ['decode', 14794752]]
    """
    build = Build(base, attn, dtype, trust_remote_code, refresh)
    contexts = () if context is None else _several(context)
    request = Request(model, ("multi-config",), _several(phase), _several(batch), contexts, build)
    return _sweep(load(model, build, progress), request, progress)


def answer(request: Request, progress: Progress = silent) -> Report:
    """Everything a request asks for, from one trace per workload."""
    if request.csv is not None:
        writable(request.csv)
    weightless = load(request.model, request.build, progress)
    many = "multi-config" in request.views
    several = max(map(len, (request.phases, request.batches, request.contexts))) > 1
    found = _sweep(weightless, request, progress)
    report = Report(
        _main(found),
        request.views if many or not several else (*request.views, "multi-config"),
        found if many or several else None,
        request.explained,
        request.depth,
    )
    if request.explained is not None:
        report.explain(request.explained)
    if request.csv is not None:
        progress(f"writing {request.csv}")
        report.to_csv(request.csv)
    return report


def _several(values: Value | Iterable[Value]) -> tuple[Value, ...]:
    """One value or many, as many."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        return (values,)
    many = tuple(values)
    if not many:
        raise InvalidValue("sweep", "()", "one value or several for each of phase, batch, context")
    return many


def _sweep(weightless: "Weightless", request: Request, progress: Progress) -> Sweep:
    _needs_config(weightless)
    many = "multi-config" in request.views
    phases = request.phases or (PHASES if many else PHASES[:1])
    batches = request.batches or (SWEEP_BATCHES if many else SWEEP_BATCHES[:1])
    contexts = request.contexts or (SWEEP_CONTEXTS if many else SWEEP_CONTEXTS[1:])
    workloads = dict.fromkeys(
        _fitted(weightless, wanted, shorten=not request.contexts)
        for wanted in grid(phases, batches, contexts)
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


def _main(found: Sweep) -> Trace:
    """The workload that single views show: the first phase and batch, the longest context."""
    first = found.traces[0].workload
    alike = [
        trace
        for trace in found.traces
        if (trace.workload.phase, trace.workload.batch) == (first.phase, first.batch)
    ]
    return max(alike, key=lambda trace: trace.workload.context)


def _run(weightless: "Weightless", workload: Workload) -> Trace:
    from llmsim_magic.capture.run import run

    return run(weightless, workload)


def _fitted(weightless: "Weightless", wanted: Workload, *, shorten: bool) -> Workload:
    from llmsim_magic.capture.inputs.lengths import fitting

    return fitting(weightless.module, wanted, weightless.info.name, shorten=shorten)


def _on_given(weightless: "Weightless", inputs: Any) -> Report:
    from llmsim_magic.capture.run import run_given

    if isinstance(inputs, Mapping):
        return Report(run_given(weightless, (), inputs))
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return Report(run_given(weightless, args, {}))


def _needs_config(weightless: "Weightless") -> None:
    from llmsim_magic.capture.inputs.lengths import is_huggingface

    if not is_huggingface(weightless.module):
        raise InvalidValue(
            "model",
            weightless.info.class_name,
            "a HuggingFace model: in Python, llmsim.trace(module, inputs=(x,)) traces any module",
        )
