"""size(): which devices a model fits, and how fast it runs on each."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.memory.capacity import Fit, Setup
from llmsim_magic.analyses.time.latency import NOT_MODELLED, NOT_MODELLED_OF_A_STEP
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.errors import Cancelled, LlmsimError, NoDecode
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.execution import Execution, runtimes_of, under
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import DEFAULT_OPTIMIZER
from llmsim_magic.records.trace.workload import (
    DEFAULT_CONTEXT,
    PHASES,
    TRAIN,
    IsCancelled,
    Workload,
    never_cancelled,
    whole_number,
)
from llmsim_magic.records.validation import as_nonempty_tuple, choice, require_callable
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import AnyCalibration, DevicePasses, device_of
from llmsim_magic.simulate.hardware.executions import (
    executions_on,
    gap_notes,
    require_executions,
    require_executions_here,
)
from llmsim_magic.simulate.hardware.link_notes import link_notes
from llmsim_magic.simulate.models.recipes import Progress, no_progress
from llmsim_magic.simulate.option_effect import require_effect_on_cache
from llmsim_magic.simulate.options import request_of
from llmsim_magic.simulate.request import ALL, Build, Deployment, Request
from llmsim_magic.simulate.training.step_sizing import StepSizing
from llmsim_magic.views.charts.device_scatter import device_scatter
from llmsim_magic.views.headlines import sizing_figures
from llmsim_magic.views.pages.html_page import as_bundle
from llmsim_magic.views.pages.text_page import as_text
from llmsim_magic.views.section import Page, Part, Section
from llmsim_magic.views.tables import memory as memory_tables
from llmsim_magic.views.tables.memory import ranked, with_unknown_memory
from llmsim_magic.views.tables.step_alternatives import step_sizing_table
from llmsim_magic.views.tables.times import phase_columns

if TYPE_CHECKING:
    import pandas as pd

BOTH = "both"
_REMARK = {
    False: "One row per device, runtime and launch; what fits first, the fastest first. Bytes are "
    "per device.",
    True: "One row per device; what fits first, the fastest first. Bytes are per device. The "
    "largest micro-batch is that of the requested context, and the longest context that of the "
    "requested batch. Each was traced, and so was the next size, which does not fit.",
}


@dataclass(frozen=True)
class Sizing:
    """The result of `size`; it displays itself in a notebook.

    Attributes:
        title: model, batch, context and parallel layout.
        table: one row per device, runtime and launch: whether the model fits, bytes, seconds of a
            prefill and of a decode step with their bands, tokens/s and the bound. Of a training
            step also the largest micro-batch and the longest context that fit, MFU, and how many
            devices hold it by data parallelism.
        notes: devices and phases without a prediction, and what the times do not include.

    >>> import llmsim_magic as llmsim
    >>> sizing = llmsim.size("gpt2", hardware="T4")
    >>> sizing.title
    'gpt2: batch 1 × context 128, one device, under transformers and vLLM'
    """

    title: str
    table: "pd.DataFrame"
    notes: tuple[str, ...]

    @cached_property
    def part(self) -> Part:
        """The answer: the fastest devices that hold the model, a chart, and all devices."""
        phases = [phase for phase in (*PHASES, TRAIN) if f"{phase}_s" in self.table]
        charts = [device_scatter(self.table, phase) for phase in reversed(phases)]
        return Part(
            "hardware-all",
            "Sizing",
            self.title,
            tuple(sizing_figures(self.table, phases)),
            (
                *(Section("", chart) for chart in charts[:1] if chart.dots),
                Section("", ranked(self.table, phases), _REMARK[TRAIN in phases]),
                *(
                    Section(chart.title, chart, is_detail=True)
                    for chart in charts[1:]
                    if chart.dots
                ),
            ),
        )

    def _page(self) -> Page:
        return Page(self.title, (self.part,), notes=self.notes)

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        return as_bundle(self._page())

    def __repr__(self) -> str:
        return as_text(self._page())


def size(
    model: Any,
    *,
    phase: str = BOTH,
    context: int = DEFAULT_CONTEXT,
    batch: int = 1,
    hardware: str | Iterable[str] = ALL,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    runtime: str | None = None,
    launch: str | None = None,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    dtype: str | None = None,
    attn: str | None = None,
    base: bool = False,
    trust_remote_code: bool = False,
    refresh: bool = False,
    optimizer: str = DEFAULT_OPTIMIZER,
    precision: str | None = None,
    checkpointing: bool = False,
    lora: str | None = None,
    qlora: bool = False,
    accumulate: int = 1,
    packed: bool = False,
    zero: int = 0,
    dp: int = 1,
    cancelled: IsCancelled = never_cancelled,
    progress: Progress = no_progress,
) -> Sizing:
    """Check which devices hold a model, and predict how fast it runs on each.

    Args:
        model: a hub id, a local folder or `config.json`, a `PretrainedConfig` or an `nn.Module`.
        phase: `both`, prefill and decode; or `train`, one optimizer step. Of a step also the
            largest micro-batch, the longest context, and how many devices share it by ZeRO.
        context: tokens in the cache of each sequence, or that a training step reads of each.
        batch: number of sequences.
        hardware: names of devices in the catalogue, or `all`.
        weight_dtype: dtype of the stored weights, such as `int4` or `fp8`; by default the model's.
        kv_dtype: dtype of the stored keys and values; by default the model's.
        runtime: what executes the model: `transformers` (a plain call of it), `vllm` (an engine)
            or `all`; by default each.
        launch: `eager` (kernels started one by one) or `graph` (captured once as a CUDA graph);
            by default each that the runtime has.
        tp: devices that share each layer (tensor parallel).
        pp: stages that share the layers (pipeline parallel).
        ep: devices that share the experts (expert parallel).
        dtype: `bfloat16`, `float16` or `float32`; by default the config's.
        attn: `sdpa` (one fused kernel) or `eager` (separate matmuls and softmax).
        base: leave out the head, as `AutoModel` does.
        trust_remote_code: run code from the model's repository.
        refresh: read the config from the hub, not from the built-in catalogue or the local cache,
            and answer from no record that is kept.
        optimizer: of a training step, as in `trace`; so are the options that follow.
        precision: as in `trace`.
        checkpointing: as in `trace`.
        lora: as in `trace`.
        qlora: as in `trace`.
        accumulate: as in `trace`.
        packed: as in `trace`.
        zero: as in `trace`.
        dp: as in `trace`.
        cancelled: called between devices; returns True to stop.
        progress: called with a message before each step.

    Returns:
        The sizing: one row per device, runtime and launch in `table`.

    Raises:
        LlmsimError: one line that says what is wrong; `Cancelled` if `cancelled` returned True.

    >>> import llmsim_magic as llmsim
    >>> table = llmsim.size("Qwen/Qwen3-32B", hardware=["L40S", "H100"]).table
    >>> table.loc[table["runtime"] == "vllm", ["device", "fits"]].values.tolist()
    [['L40S', False], ['H100-SXM5-80GB', True]]
    """
    request = _request(model, locals())
    require_callable("cancelled", cancelled, "that returns whether to stop")
    require_callable("progress", progress, "that takes a message")
    setup = _setup(batch, context, request)
    planner = CapacityPlanner(model, request.build)
    return sizing_of(planner, setup, request.deployment, cancelled, progress)


def _setup(batch: int, context: int, request: Request) -> Setup:
    return Setup(
        phase=request.phases[0],
        batch=whole_number("batch", batch),
        context=whole_number("context", context),
        parallel=request.build.parallel,
        weight_dtype=request.deployment.weight_dtype,
        kv_dtype=request.deployment.kv_dtype,
    )


def _request(model: Any, arguments: Mapping[str, Any]) -> Request:
    """The request of a call of `size`: its devices, dtypes and how the model is built."""
    values = dict(arguments)
    phase = choice("phase", values["phase"], (BOTH, TRAIN))
    is_step = phase == TRAIN  # which is checked against its batch
    values |= {
        "phase": (TRAIN,) if is_step else PHASES,
        "batch": (values["batch"],) if is_step else (),
        "context": (values["context"],) if is_step else (),
        "hardware": as_nonempty_tuple("hardware", values["hardware"]),
    }
    return request_of(model, ("summary",), values)


def sizing_of(
    planner: CapacityPlanner,
    setup: Setup,
    deployment: Deployment,
    cancelled: IsCancelled = never_cancelled,
    progress: Progress = no_progress,
) -> Sizing:
    """`size` for a model whose planner exists already."""
    if setup.phase == TRAIN:
        return _sizing_of_step(planner, setup, deployment, cancelled, progress)
    passes, notes = _passes(planner, setup)
    require_effect_on_cache(deployment, passes)
    costing = DevicePasses(passes, deployment, planner)
    is_all = ALL in deployment.hardware
    names = [*accelerators.entries()] if is_all else [*deployment.hardware]
    require_executions(deployment, passes[0], None)
    rows: list[_Row] = []
    devices: list[Accelerator] = []
    for place, name in enumerate(names, 1):
        if cancelled():
            raise Cancelled(f"size: cancelled after {place - 1} devices")
        progress(f"device {place} of {len(names)}: {name}")
        require_executions_here(deployment, name)
        device, calibration = device_of(name)
        if not is_all:
            require_executions(deployment, passes[0], device)
        devices.append(device)
        rows += _rows_on(device, calibration, setup, costing)
    rows.sort(key=lambda row: row.fit is None)
    notes += _error_notes(rows)
    unknown = [row for row in rows if row.fit is None]
    if unknown:
        names_of = ", ".join(dict.fromkeys(row.device for row in unknown))
        notes.append(f"memory is what is installed, so whether it fits is unknown: {names_of}")
    notes += (*gap_notes(deployment, passes[0], devices), *link_notes(passes[0], devices))
    table = with_unknown_memory(
        memory_tables.capacity_table(row.fit for row in rows),
        [
            (row.device, row.execution.runtime, setup.parallel.ranks, row.needed, row.refusal)
            for row in unknown
        ],
    )
    table.insert(2, "launch", [row.execution.launch for row in rows])
    for place, trace in enumerate(passes):
        columns = phase_columns(trace, [row.times[place] for row in rows])
        table = table.assign(**columns)
    shown = [row.execution for row in rows] or executions_on(deployment, passes[0])
    title = (
        f"{passes[0].model.name}: batch {setup.batch} × context {setup.context}, "
        f"{setup.parallel}, {under(runtimes_of(shown))}"
    )
    return Sizing(title, table, (*notes, NOT_MODELLED))


def _sizing_of_step(
    planner: CapacityPlanner,
    setup: Setup,
    deployment: Deployment,
    cancelled: IsCancelled,
    progress: Progress,
) -> Sizing:
    """The sizing of a training step."""
    sizing = StepSizing(planner, setup, deployment)
    sizes = tuple(sizing.sizes(progress, cancelled))
    title = (
        f"{sizing.trace.model.name}: {Workload(TRAIN, setup.batch, setup.context)}, "
        f"{', '.join(_options(planner.build))}"
    )
    return Sizing(title, step_sizing_table(sizes), (*sizing.notes(sizes), NOT_MODELLED_OF_A_STEP))


def _options(build: Build) -> Iterator[str]:
    """The options of a step and its devices, in words."""
    training, parallel = build.training, build.parallel
    if training is not None:
        yield str(training)
    if training is None or training.dp == 1 or not parallel.is_one:
        yield str(parallel)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the table: each pass's time, or an error; None for what does not fit.

    `fit` is None for a device of unknown memory; `needed` is the bytes that a device needs, and
    `refusal` says that it does not compute in the dtype.
    """

    device: str
    execution: Execution
    fit: Fit | None
    needed: int
    times: tuple[PassTime | None, ...]
    refusal: str | None = None
    error: str = ""


def _error_notes(rows: Iterable[_Row]) -> list[str]:
    """A sentence for each refusal, and for each device and error with its executions."""
    found: dict[tuple[str, str], list[str]] = {}
    refused: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.refusal is not None:
            refused.setdefault(row.refusal, {})[row.device] = None
        if row.error:
            found.setdefault((row.device, row.error), []).append(str(row.execution))
    return [
        *(f"no time on {', '.join(names)}: {why}" for why, names in refused.items()),
        *(f"{device} ({'; '.join(names)}): {why}" for (device, why), names in found.items()),
    ]


def _rows_on(
    device: Accelerator, calibration: AnyCalibration, setup: Setup, costing: DevicePasses
) -> Iterator[_Row]:
    """A row for each execution on a device; the fit of a runtime is found once."""
    fits: dict[str, Fit | None] = {}
    passes, planner = costing.traces, costing.planner
    if planner is None:
        return
    refused = refusal(passes[0], device)
    for execution in executions_on(costing.deployment, passes[0], device):
        runtime = execution.runtime
        if runtime not in fits:
            fits[runtime] = planner.fit(setup, device, runtime, max_stages=1)
        fit, own = fits[runtime], runtimes.on(runtime, device)
        memory = planner.needed(setup, own) if fit is None else fit.memory
        row = _Row(device.name, execution, fit, memory.required, (None,) * len(passes), refused)
        if refused is None and (fit is None or fit.fits):
            row = _timed(row, costing, device, calibration)
        yield row


def _timed(
    row: _Row, costing: DevicePasses, device: Accelerator, calibration: AnyCalibration
) -> _Row:
    try:
        times = tuple(
            costing.time_on(trace, device, calibration, row.execution) for trace in costing.traces
        )
    except LlmsimError as error:
        return replace(row, error=str(error))
    return replace(row, times=times)


def _passes(planner: CapacityPlanner, setup: Setup) -> tuple[tuple[Trace, ...], list[str]]:
    """Traces of the prefill and the decode step, and a note for a phase that does not exist."""
    passes, notes = [], []
    for phase in PHASES:
        try:
            workload = Workload(phase, setup.batch, setup.context)
            passes.append(planner.tracer(setup.parallel)(workload))
        except NoDecode as error:
            notes.append(str(error))
    return tuple(passes), notes
