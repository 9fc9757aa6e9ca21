"""Request: what the user asked for, as a frozen record. Imports neither torch nor pandas."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llmsim_magic.analyses.quantization import storage_layouts as layouts
from llmsim_magic.catalog.accelerators import find
from llmsim_magic.records.errors import InvalidValue, one_of, safe_str
from llmsim_magic.records.hardware.dtypes import dtype_name
from llmsim_magic.records.hardware.execution import Execution, executions
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.training import PRECISIONS, Training
from llmsim_magic.records.trace.workload import (
    ATTENTIONS,
    DEFAULT_CONTEXT,
    PHASES,
    Workload,
    grid,
    whole_number,
)
from llmsim_magic.records.validation import choice, flag

STANDARD_OUTPUT = "-"  # a file that the terminal and the notebook print
LOCAL, LOCAL_CPU, ALL = "local", "local-cpu", "all"
MEASURED = (LOCAL, LOCAL_CPU)  # devices of this machine
SWEEP_BATCHES = (1, 16)
SWEEP_CONTEXTS = (1, DEFAULT_CONTEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a model is built and trained: its head, attention, dtype, layout and training.

    Attributes:
        base: leave out the head.
        attn: `sdpa` or `eager`; None for the model's own.
        dtype: a torch dtype name; None for the config's.
        trust_remote_code: run code from the model's repository.
        refresh: read the config from the hub, not from the built-in catalogue or the local cache.
        parallel: tensor, pipeline and expert parallel sizes.
        training: how a training step runs; None for inference.

    Raises:
        InvalidValue: an unknown attention or dtype, a flag that is not a bool, a dtype beside the
            precision of a training, a training in pipeline stages, or adapters of split layers.
    """

    base: bool = False
    attn: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    refresh: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    training: Training | None = None

    def __post_init__(self) -> None:
        for name in ("base", "trust_remote_code", "refresh"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.attn is not None:
            choice("attn", self.attn, ATTENTIONS)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_name(self.dtype))
            if self.training is not None and self.training.precision is not None:
                raise InvalidValue(
                    f"dtype cannot be combined with precision={self.training.precision!r}, which "
                    "chooses the dtype of the weights; leave one out"
                )
        if self.training is not None and self.parallel.pp > 1:
            raise InvalidValue(
                f"pp={self.parallel.pp} cannot be combined with phase 'train': schedules of "
                "micro-batches over stages are not simulated; use tp, dp and zero"
            )
        if self.training is not None and self.training.lora and self.parallel.width > 1:
            name = "tp" if self.parallel.tp > 1 else "ep"
            raise InvalidValue(
                f"{name}={self.parallel.width} cannot be combined with lora or qlora: adapters of "
                "split layers are not simulated; use dp and zero"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The devices of a model, its stored dtypes, and what executes it.

    Attributes:
        hardware: accelerators of the catalogue, `local` for this machine's GPU (its CPU if it has
            none), `local-cpu`, or `all`.
        weight_dtype: dtype of the stored weights; None for the model's.
        kv_dtype: dtype of the stored keys and values; None for the model's.
        runtime: `transformers` (a plain call of the model), `vllm` (an engine), `all`, or None for
            each that executes the model on a device.
        launch: `eager` (kernels started one by one) or `graph` (captured once as a CUDA graph);
            None for each that a runtime has.

    Raises:
        InvalidValue: an unknown dtype, runtime or launch, or a launch that the runtime lacks.
        UnknownHardware: a device that the catalogue does not list.
    """

    hardware: tuple[str, ...] = ()
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    runtime: str | None = None
    launch: str | None = None

    def __post_init__(self) -> None:
        names = map(safe_str, self.hardware)
        known = (name if name in (*MEASURED, ALL) else find(name).name for name in names)
        object.__setattr__(self, "hardware", tuple(dict.fromkeys(known)))
        if self.weight_dtype is not None:
            object.__setattr__(self, "weight_dtype", layouts.weight_dtype(self.weight_dtype))
        if self.kv_dtype is not None:
            object.__setattr__(self, "kv_dtype", layouts.kv_dtype(self.kv_dtype))
        executions(self.runtime, self.launch)

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The executions of this runtime and launch, on whatever device."""
        return executions(self.runtime, self.launch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model may take at most; None is no limit.

    Attributes:
        memory: bytes that a device needs, with what drivers hold.
        parameters: parameters of the whole model.
        seconds: predicted time of each pass.
    """

    memory: int | None = None
    parameters: int | None = None
    seconds: float | None = None

    @property
    def is_any(self) -> bool:
        return (self.memory, self.parameters, self.seconds) != (None, None, None)


def _check_precision(precision: str, hardware: Iterable[str]) -> None:
    """Raise `InvalidValue` for a device of the catalogue that does not compute in a precision."""
    dtype, other = ("fp32", "bf16") if precision == "fp32" else ("bf16", "fp32")
    for device in (find(name) for name in hardware if name not in (*MEASURED, ALL)):
        if device.peak_flops and dtype not in device.peak_flops:
            raise InvalidValue(
                f"precision {precision} cannot run on {device.name}, which does not compute in "
                f"{dtype}; choose precision {other}, or a device with {dtype}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model, its workloads and the views to show. An empty tuple means the default.

    Attributes:
        model: a hub id, a path, a config or a live module.
        views: names of views in `VIEWS`.
        phases: `prefill`, `decode`, or `train` alone.
        batches: batch sizes, in sequences.
        contexts: context lengths, in tokens.
        build: how the model is built.
        deployment: devices, stored dtypes, runtime and launch.
        selection: depth, layers and level of the graphs.
        limits: what the model may take at most.
        check: show the conditions and nothing else, also without limits: does it fit.
        explain: path of the module to explain.
        compare: a second model.
        csv: folder to write tables and graphs into.
        json: file to write the report into; `-` for standard output.
        overwrite: replace files that another program wrote.
        replay: run identical layers only once.
        sure: confirm a sweep of more than 1,000 workloads.

    Raises:
        InvalidValue: a batch or context below 1, a flag that is not a bool, a limit that needs a
            device, or what a training step does not have.
    """

    model: Any
    views: tuple[str, ...] = ("summary",)
    phases: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    build: Build = field(default_factory=Build)
    deployment: Deployment = field(default_factory=Deployment)
    selection: Selection = field(default_factory=Selection)
    limits: Limits = field(default_factory=Limits)
    check: bool = False
    explain: str | None = None
    compare: Any = None
    csv: str | None = None
    json: str | None = None
    overwrite: bool = False
    replay: bool = True
    sure: bool = False

    def __post_init__(self) -> None:
        flag("replay", self.replay)
        flag("sure", self.sure)
        flag("overwrite", self.overwrite)
        for name, values in (("batch", self.batches), ("context", self.contexts)):
            for value in values:
                whole_number(name, value)
        self._check_limits()
        if self.build.training is not None:
            self._check_step(self.build.training)

    def _check_limits(self) -> None:
        hardware = self.deployment.hardware
        if self.check and not self.limits.is_any and not hardware:
            raise InvalidValue(
                "check needs a condition: --max-memory, --max-params, --max-time or --hardware"
            )
        if self.limits.seconds is not None and not hardware:
            raise InvalidValue(
                "--max-time has no effect without --hardware; add it, or leave --max-time out"
            )
        if ALL in hardware and (self.check or self.limits.is_any):
            raise InvalidValue(
                "a check of --max-memory, --max-params or --max-time cannot be combined with "
                "--hardware all; name the devices, as in --hardware L4,H100"
            )

    def _check_step(self, training: Training) -> None:
        """Raise `InvalidValue` where a training step cannot run as the request says."""
        for batch in self.batches or SWEEP_BATCHES[:1]:
            training.micro_batch(batch)
        stored = self.deployment
        if stored.runtime == "vllm":
            raise InvalidValue(
                "runtime must be transformers in phase train, not 'vllm', which serves models and "
                "does not train them; leave it out"
            )
        if stored.kv_dtype is not None:
            raise InvalidValue(
                f"kv_dtype {stored.kv_dtype} has no effect in phase train, which keeps no cache; "
                "leave it out"
            )
        if stored.weight_dtype is not None:
            raise InvalidValue(
                f"weight_dtype {stored.weight_dtype} has no effect in phase train, whose weights "
                f"are stored as precision says: {one_of(PRECISIONS)}; leave it out"
            )
        if training.precision is not None:
            _check_precision(training.precision, stored.hardware)

    @property
    def training(self) -> Training:
        """How a training step runs; of inference, with the defaults."""
        return self.build.training or Training()

    @property
    def json_file(self) -> str | None:
        """The file to write as JSON, if it is not standard output."""
        return None if self.json == STANDARD_OUTPUT else self.json

    @property
    def prints_json(self) -> bool:
        """Whether JSON, and nothing else, goes to standard output."""
        return self.json == STANDARD_OUTPUT

    @property
    def is_sweep(self) -> bool:
        """Whether the request has several workloads."""
        sizes = map(len, (self.phases, self.batches, self.contexts))
        return "multi-config" in self.views or max(sizes) > 1

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """Every workload of the request, phases outermost, with the defaults filled in."""
        many = "multi-config" in self.views
        return grid(
            self.phases or (PHASES if many else PHASES[:1]),
            self.batches or (SWEEP_BATCHES if many else SWEEP_BATCHES[:1]),
            self.contexts or (SWEEP_CONTEXTS if many else SWEEP_CONTEXTS[1:]),
        )
