"""Every option of a request, declared once for the magic, Python, the panel and completion."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import InvalidValue, one_of
from llmsim_magic.records.hardware.dtypes import DTYPE_ALIASES, DTYPES, KV_DTYPES, WEIGHT_DTYPES
from llmsim_magic.records.hardware.execution import ALL_RUNTIMES, LAUNCHES, RUNTIMES
from llmsim_magic.records.sizes import parse_bytes, parse_parameters, parse_seconds
from llmsim_magic.records.spelling import nearest
from llmsim_magic.records.trace.optimizers import OPTIMIZERS
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.selection import LEVELS, Selection, Unfolded
from llmsim_magic.records.trace.training import (
    DEFAULT_OPTIMIZER,
    DEFAULT_QLORA,
    PRECISIONS,
    ZERO_STAGES,
    Training,
    zero_stage,
)
from llmsim_magic.records.trace.workload import ATTENTIONS, PHASES, TRAIN
from llmsim_magic.simulate.request import ALL, MEASURED, Build, Deployment, Limits, Request

CONDITIONS = "conditions (exit status 1 where one does not hold)"
_MAX_DIGITS = 40  # of a number that is read; `int` refuses more than 4,300
TRACE, SWEEP, SIZE, PANEL, GRAPH = "trace", "sweep", "size", "panel", "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `--weight-dtype` of the magic, `weight_dtype=` in Python.

    Attributes:
        name: the keyword in Python.
        field: the attribute of `Request` that stores it, with dots for nested records.
        group: the heading under which `--help` lists it.
        help: its line in `--help`.
        default: the value if the option is not given.
        metavar: the name of its value in `--help`.
        parse: converts the text of the command line; None makes the option a flag.
        choices: values that completion and dropdowns offer.
        calls: the public functions that take it as a keyword.
        label: the description of its widget in the panel.
        unset: the entry of its dropdown for "not set".
        aliases: other names of a flag on a line.
    """

    name: str
    field: str
    group: str
    help: str
    default: Any = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    label: str = ""
    unset: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        return self.parse is None

    @property
    def is_list(self) -> bool:
        """Whether its value is a list with commas."""
        return "[," in (self.metavar or "")

    @property
    def flag(self) -> str:
        """The option as typed: `--weight-dtype`, or `--no-replay` for a flag that is on."""
        prefix = "--no-" if self.default is True else "--"
        return prefix + self.name.replace("_", "-")

    def value(self, request: Request) -> Any:
        """The value of this option in a request."""
        return attrgetter(self.field)(request)


def _number(name: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or len(text) > _MAX_DIGITS:
            raise InvalidValue.must_be(f"--{name}", text, "a whole number of at least 1")
        if int(text) < 1:
            raise InvalidValue.must_be(f"--{name}", text, "at least 1")
        return int(text)

    return parse


def _numbers(name: str) -> Callable[[str], tuple[int, ...]]:
    parse = _number(name)
    return lambda text: tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _layers(text: str) -> Unfolded:
    if text == "all":
        return "all"
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InvalidValue.must_be("--layers", text, "all or layer indices such as 0,27")
    return frozenset(map(int, parts))


def _phases(text: str) -> tuple[str, ...]:
    if text == "both":
        return PHASES
    legal = (*PHASES, "both", TRAIN)
    if text not in legal:
        raise InvalidValue.must_be("--phase", text, one_of(legal), nearest(text, legal))
    return (text,)


def _stage(text: str) -> int:
    return zero_stage("--zero", int(text) if text in map(str, ZERO_STAGES) else text)


OPTIONS = (
    Option(
        name="depth", field="selection.depth", group="graphs", metavar="N",
        parse=_number("depth"), calls=(GRAPH,), label="Open to", unset="fit to screen",
        help="depth of the modules to draw (default: as deep as fits a screen)",
    ),
    Option(
        name="layers", field="selection.layers", group="graphs", metavar="N[,N]|all",
        parse=_layers, default=frozenset(), calls=(GRAPH,), label="Layers",
        help="layers to draw one by one instead of folded together",
    ),
    Option(
        name="level", field="selection.level", group="graphs", metavar="LEVEL", parse=str,
        default="operator", choices=LEVELS, calls=(GRAPH,), label="Node",
        help="what each node of a graph is: module, operator (default) or kernel",
    ),
    Option(
        name="phase", field="phases", group="workload", metavar="PHASE", parse=_phases,
        default=(), choices=(*PHASES, "both", TRAIN), calls=(TRACE, SWEEP, SIZE, PANEL),
        label="Phase",
        help="prefill (default), decode, both, or train: one optimizer step",
    ),
    Option(
        name="batch", field="batches", group="workload", metavar="N[,N]",
        parse=_numbers("batch"), default=(), calls=(TRACE, SWEEP, SIZE, PANEL), label="Batch",
        help="batch sizes (default: 1)",
    ),
    Option(
        name="context", field="contexts", group="workload", metavar="N[,N]",
        parse=_numbers("context"), default=(), calls=(TRACE, SWEEP, SIZE, PANEL), label="Context",
        help="context lengths: tokens read by prefill, or cached before decode (default: 128)",
    ),
    Option(
        name="sure", field="sure", group="workload", default=False, calls=(SWEEP,),
        aliases=("--yes",),
        help="confirm a sweep of more than 1,000 workloads",
    ),
    Option(
        name="replay", field="replay", group="workload", default=True, calls=(TRACE, SWEEP),
        help="run every layer, even if it is identical to an earlier one",
    ),
    Option(
        name="dtype", field="build.dtype", group="model", metavar="DTYPE", parse=str,
        choices=(*DTYPES, *DTYPE_ALIASES), calls=(TRACE, SWEEP, SIZE, PANEL), label="Dtype",
        unset="default",
        help="bfloat16, float16, float32, or bf16, fp16, fp32 (default: that of the config)",
    ),
    Option(
        name="base", field="build.base", group="model", default=False,
        calls=(TRACE, SWEEP, SIZE, PANEL), label="Head",
        help="trace the base model without its head, as AutoModel loads it",
    ),
    Option(
        name="attn", field="build.attn", group="model", metavar="KIND", parse=str,
        choices=ATTENTIONS, calls=(TRACE, SWEEP, SIZE, PANEL), label="Attention",
        unset="default", help="sdpa (one fused kernel) or eager (separate kernels)",
    ),
    Option(
        name="trust_remote_code", field="build.trust_remote_code", group="model", default=False,
        calls=(TRACE, SWEEP, SIZE, PANEL), help="run code from the model's repository",
    ),
    Option(
        name="refresh", field="build.refresh", group="model", default=False,
        calls=(TRACE, SWEEP, SIZE),
        help="read the config from the hub before the built-in catalogue, and trace again",
    ),
    Option(
        name="hardware", field="deployment.hardware", group="devices", metavar="NAME[,NAME]",
        parse=_names, default=(), choices=(*accelerators.entries(), *MEASURED, ALL),
        calls=(TRACE, SWEEP, SIZE, PANEL), label="Hardware", unset="none",
        help="predict time and memory on H100, …, local (this machine), local-cpu or all",
    ),
    Option(
        name="weight_dtype", field="deployment.weight_dtype", group="devices", metavar="DTYPE",
        parse=str, choices=WEIGHT_DTYPES, calls=(TRACE, SIZE), label="Weights",
        unset="default", help="dtype of the stored weights: int4, int8, fp8, bf16, …",
    ),
    Option(
        name="kv_dtype", field="deployment.kv_dtype", group="devices", metavar="DTYPE",
        parse=str, choices=KV_DTYPES, calls=(TRACE, SIZE), label="Cache", unset="default",
        help="dtype of the stored keys and values: int8, fp8, bf16, …",
    ),
    Option(
        name="runtime", field="deployment.runtime", group="devices", metavar="NAME", parse=str,
        choices=(*RUNTIMES, ALL_RUNTIMES), calls=(TRACE, SIZE, PANEL), label="Runtime",
        unset="every runtime",
        help="transformers (a plain call of the model), vllm (an engine) or all "
        "(default: all; without --hardware, memory under transformers)",
    ),
    Option(
        name="launch", field="deployment.launch", group="devices", metavar="KIND", parse=str,
        choices=LAUNCHES, calls=(TRACE, SWEEP, SIZE),
        help="eager (kernels started one by one) or graph (captured once as a CUDA graph); "
        "default: each that the runtime has",
    ),
    Option(
        name="tp", field="build.parallel.tp", group="devices", metavar="N", parse=_number("tp"),
        default=1, calls=(TRACE, SIZE), label="Devices",
        help="tensor parallel: number of devices that split each layer",
    ),
    Option(
        name="pp", field="build.parallel.pp", group="devices", metavar="N", parse=_number("pp"),
        default=1, calls=(TRACE, SIZE),
        help="pipeline parallel: number of stages, each with some layers",
    ),
    Option(
        name="ep", field="build.parallel.ep", group="devices", metavar="N", parse=_number("ep"),
        default=1, calls=(TRACE, SIZE),
        help="expert parallel: number of devices that split the experts",
    ),
    Option(
        name="optimizer", field="training.optimizer", group="training", metavar="NAME", parse=str,
        default=DEFAULT_OPTIMIZER, choices=tuple(OPTIMIZERS), calls=(TRACE, SWEEP, SIZE, PANEL),
        label="Optimizer",
        help="adamw (default), sgd, adafactor, adamw_8bit, lion, muon, …",
    ),
    Option(
        name="precision", field="training.precision", group="training", metavar="NAME", parse=str,
        choices=PRECISIONS, calls=(TRACE, SWEEP, SIZE, PANEL), label="Precision",
        unset="default",
        help="bf16, fp32, or amp: weights in float32 under autocast (default: the config's dtype)",
    ),
    Option(
        name="checkpointing", field="training.checkpointing", group="training", default=False,
        calls=(TRACE, SWEEP, SIZE, PANEL), label="Checkpointing",
        help="run each layer's forward again in backward instead of keeping its tensors",
    ),
    Option(
        name="lora", field="training.lora", group="training", metavar="SPEC", parse=str,
        calls=(TRACE, SWEEP, SIZE), label="LoRA", unset="none",
        help="train a LoRA adapter alone: r=16 on what peft targets by default, often q_proj and "
        "v_proj; r=16,targets=q_proj+v_proj; or r=16,targets=all-linear",
    ),
    Option(
        name="qlora", field="training.qlora", group="training", default=False,
        calls=(TRACE, SWEEP, SIZE),
        help="keep the base model's linear layers in 4 bits; alone with --lora " + DEFAULT_QLORA,
    ),
    Option(
        name="accumulate", field="training.accumulate", group="training", metavar="N",
        parse=_number("accumulate"), default=1, calls=(TRACE, SWEEP, SIZE),
        help="micro-batches per step, whose gradients are added up",
    ),
    Option(
        name="packed", field="training.packed", group="training", default=False,
        calls=(TRACE, SWEEP, SIZE),
        help="pack the sequences of a batch into one row",
    ),
    Option(
        name="zero", field="training.zero", group="training", metavar="STAGE",
        parse=_stage, choices=tuple(map(str, ZERO_STAGES)), default=0,
        calls=(TRACE, SWEEP, SIZE),
        help="shard over --dp: 1 the optimizer's states, 2 gradients too, 3 parameters too",
    ),
    Option(
        name="dp", field="training.dp", group="training", metavar="N", parse=_number("dp"),
        default=1, calls=(TRACE, SWEEP, SIZE),
        help="data parallel: number of devices that train on different sequences",
    ),
    Option(
        name="max_memory", field="limits.memory", group=CONDITIONS,
        metavar="SIZE", parse=partial(parse_bytes, "--max-memory"),
        help="the memory that a device needs is at most SIZE, such as 24GB or 24GiB",
    ),
    Option(
        name="max_params", field="limits.parameters", group=CONDITIONS,
        metavar="N", parse=partial(parse_parameters, "--max-params"),
        help="the model has at most N parameters, such as 8B or 500M",
    ),
    Option(
        name="max_time", field="limits.seconds", group=CONDITIONS,
        metavar="TIME", parse=partial(parse_seconds, "--max-time"),
        help="each pass takes at most TIME on --hardware, such as 10ms",
    ),
    Option(
        name="compare", field="compare", group="devices", metavar="MODEL", parse=str,
        help="a second model to show side by side",
    ),
    Option(
        name="csv", field="csv", group="result", metavar="DIR", parse=str,
        help="write the displayed tables and graphs into a folder",
    ),
    Option(
        name="json", field="json", group="result", metavar="FILE", parse=str,
        help="write the displayed report as JSON; - prints it, and nothing else",
    ),
    Option(
        name="overwrite", field="overwrite", group="result", default=False,
        help="replace files even if another program wrote them",
    ),
    Option(
        name="explain", field="explain", group="views", metavar="PATH", parse=str,
        help="show the arithmetic behind the FLOPs and bytes of one module",
    ),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}


def text_of(option: Option, value: Any) -> str:
    """A value of an option as text of a line."""
    if option.name == "phase" and value == PHASES:
        return "both"
    if isinstance(value, (tuple, frozenset)):
        return ",".join(map(str, sorted(value) if isinstance(value, frozenset) else value))
    return str(value)


def request_of(
    model: Any, views: tuple[str, ...], values: Mapping[str, Any], *, check: bool = False
) -> Request:
    """Build a request from option values by name; a missing option has its default.

    Args:
        model: a hub id, a path, a config or a live module.
        views: names of views in `VIEWS`.
        values: option values by `Option.name`.
        check: show conditions and no view.

    Raises:
        InvalidValue: an illegal value.
        UnknownHardware: a device that the catalogue does not list.
    """
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for option in OPTIONS:
        record, _, attribute = option.field.rpartition(".")
        parts[record][attribute] = values.get(option.name, option.default)
    parallel = Parallel(**parts["build.parallel"])
    training = _training(parts["training"], parts[""]["phases"])
    return Request(
        model=model,
        views=views,
        check=check,
        build=Build(parallel=parallel, training=training, **parts["build"]),
        deployment=Deployment(**parts["deployment"]),
        selection=Selection(**parts["selection"]),
        limits=Limits(**parts["limits"]),
        **parts[""],
    )


def _training(values: Mapping[str, Any], phases: tuple[str, ...]) -> Training | None:
    """How steps run if the phase is training; None for inference.

    Raises:
        InvalidValue: an option of training without it, or training beside other phases.
    """
    training = Training(**values)
    if TRAIN in phases:
        if len(phases) > 1:
            raise InvalidValue("phase train cannot be combined with other phases; ask for it alone")
        return training
    for name in training.changed:
        raise InvalidValue(f"{name} has no effect without phase train; add it, or leave {name} out")
    return None
