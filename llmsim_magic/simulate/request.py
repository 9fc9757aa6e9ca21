"""One question, from whichever front door. Light to import: nothing is run here."""

from dataclasses import dataclass, field
from typing import Any

from llmsim_magic.analyses.memory import quantization
from llmsim_magic.catalog.accelerators import find
from llmsim_magic.records.errors import safe_str
from llmsim_magic.records.hardware.dtypes import dtype_name
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.workload import ATTENTIONS, whole_number
from llmsim_magic.records.validation import choice, flag

VIEWS = ("summary", "ops", "deps", "topological", "multi-config", "costs", "memory")
LAUNCHES = ("graph", "eager")
LOCAL, ALL = "local", "all"


@dataclass(frozen=True, slots=True)
class Build:
    """How a model is built: its head, attention and dtype, and which part of it of how many.

    Raises `InvalidValue` for an attention or dtype that does not exist, or a flag that is none.
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


@dataclass(frozen=True, slots=True)
class Deployment:
    """On which devices a model runs, how it is stored there, and how its kernels are started.

    `hardware` names accelerators of the catalogue, `local` for this machine, or `all`. Weights and
    cache are as the model has them where no dtype is named. `graph`: captured once, as engines do;
    `eager`: each kernel started from the host. Raises `InvalidValue` and `UnknownHardware`.
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


@dataclass(frozen=True, slots=True)
class Request:
    """A model, the views of it that are wanted, and the workloads; empty tuples mean the default.

    Raises `InvalidValue` for a size below 1.
    """

    model: Any
    views: tuple[str, ...] = ("summary",)
    phases: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    build: Build = field(default_factory=Build)
    explained: str | None = None
    drawn: Selection = field(default_factory=Selection)
    deployed: Deployment = field(default_factory=Deployment)
    beside: Any = None  # a second model to compare with
    csv: str | None = None
    overwrite: bool = False  # files that somebody else wrote, too
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
        """Whether it asks for several workloads."""
        sizes = map(len, (self.phases, self.batches, self.contexts))
        return "multi-config" in self.views or max(sizes) > 1
