"""One question, as every front door asks it. Light to import: nothing runs here."""

from dataclasses import dataclass, field
from typing import Any

from llmsim_magic.analyses.memory import quantization
from llmsim_magic.catalog.accelerators import find
from llmsim_magic.records.errors import safe_str
from llmsim_magic.records.hardware.dtypes import dtype_name
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.workload import (
    ATTENTIONS,
    DEFAULT_CONTEXT,
    PHASES,
    Workload,
    grid,
    whole_number,
)
from llmsim_magic.records.validation import choice, flag

LAUNCHES = ("graph", "eager")
LOCAL, ALL = "local", "all"
SWEEP_BATCHES = (1, 16)
SWEEP_CONTEXTS = (1, DEFAULT_CONTEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a model is built: its head, attention, dtype, and the part of it that one rank holds.

    Raises:
        InvalidValue: an attention or dtype that does not exist, or a flag that is not a bool.
    """

    base: bool = False
    attn: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    refresh: bool = False
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        for name in ("base", "trust_remote_code", "refresh"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.attn is not None:
            choice("attn", self.attn, ATTENTIONS)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_name(self.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The devices a model runs on, the dtypes it is stored in, and how its kernels are launched.

    `hardware` names accelerators of the catalogue, `local` for this machine, or `all`. A dtype of
    None keeps the model's own. `launch` is `graph` (kernels captured once, as engines do) or
    `eager` (each kernel launched by the host).

    Raises:
        InvalidValue: a dtype or launch that does not exist.
        UnknownHardware: a device that the catalogue does not list.
    """

    hardware: tuple[str, ...] = ()
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    launch: str = "graph"

    def __post_init__(self) -> None:
        names = map(safe_str, self.hardware)
        known = (name if name in (LOCAL, ALL) else find(name).name for name in names)
        object.__setattr__(self, "hardware", tuple(dict.fromkeys(known)))
        if self.weight_dtype is not None:
            object.__setattr__(self, "weight_dtype", quantization.weight_dtype(self.weight_dtype))
        if self.kv_dtype is not None:
            object.__setattr__(self, "kv_dtype", quantization.kv_dtype(self.kv_dtype))
        choice("launch", self.launch, LAUNCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model, the views to show of it, and the workloads; an empty tuple means the default.

    `explain` is the path of a module, `compare` a second model, `csv` a folder to write to.
    `overwrite` allows replacing files that llmsim_magic did not write; `sure` allows more than a
    thousand workloads.

    Raises:
        InvalidValue: a batch or context below 1, or a flag that is not a bool.
    """

    model: Any
    views: tuple[str, ...] = ("summary",)
    phases: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    build: Build = field(default_factory=Build)
    deployment: Deployment = field(default_factory=Deployment)
    selection: Selection = field(default_factory=Selection)
    explain: str | None = None
    compare: Any = None
    csv: str | None = None
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

    @property
    def is_sweep(self) -> bool:
        """Whether the request is answered by several workloads."""
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
