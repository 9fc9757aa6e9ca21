"""Tools that say how much memory a training step takes, each asked as its users ask it.

Each function is called in a process of its own. It imports what the tool needs, and then times what
its user waits for: from a config to the peak.
"""

import csv
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_tools import config_of
from benchmarks.timing import peak_gb, timed

RUNS_FILE = Path(__file__).with_name("training_runs.csv")
OUR_MODULES = ("llmsim_magic.capture.train.step", "llmsim_magic.views.tables.memory")
STEPS = 2  # the optimizer has its states in the second one


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a training step runs.

    Attributes:
        model: A name of the catalogue.
        batch: Sequences of the step.
        context: Tokens of each.
        precision: `bf16`, `fp32` or `amp`.
        checkpointing: Whether layers are computed again in backward.
        lora_rank: Of adapters at every linear layer; 0 trains every parameter.
    """

    model: str
    batch: int
    context: int
    precision: str = "bf16"
    checkpointing: bool = False
    lora_rank: int = 0

    def __str__(self) -> str:
        options = (
            self.precision,
            "checkpointing" if self.checkpointing else "",
            f"LoRA r={self.lora_rank}" if self.lora_rank else "",
        )
        size = f"{self.batch} × {self.context}"
        return ", ".join((self.model, size, *filter(None, options)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A step on a GPU.

    Attributes:
        setup: How it ran, with AdamW.
        peak_bytes: The peak of allocated bytes in a steady step.
        step_s: Seconds of a step.
    """

    setup: Setup
    peak_bytes: int
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool says, and what that takes.

    Attributes:
        peak_bytes: The peak that it predicts.
        wall_s: Seconds from the config to the peak, without imports.
        cpu_s: Seconds of the processor for the same.
        memory_gb: What the process needs for it at its peak, above the imports.
    """

    peak_bytes: int
    wall_s: float
    cpu_s: float
    memory_gb: float


Tool = Callable[[Setup], Answer]


def measured_runs(path: Path = RUNS_FILE) -> list[Measured]:
    """Read the runs on a GPU."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Measured(
                setup=Setup(
                    model=row["model"],
                    batch=int(row["batch"]),
                    context=int(row["context"]),
                    precision=row["precision"],
                    checkpointing=row["checkpointing"] == "yes",
                    lora_rank=int(row["lora_rank"]),
                ),
                peak_bytes=int(row["peak_bytes"]),
                step_s=float(row["step_s"]),
            )
            for row in csv.DictReader(file)
        ]


def options_of(setup: Setup) -> dict[str, Any]:
    """The keywords of `llmsim_magic.trace`."""
    options: dict[str, Any] = {"phase": "train", "batch": setup.batch, "context": setup.context}
    options |= {"precision": setup.precision, "checkpointing": setup.checkpointing}
    if setup.lora_rank:
        options["lora"] = f"r={setup.lora_rank},targets=all-linear"
    return options


def ours(setup: Setup) -> Answer:
    """`llmsim_magic.trace`, the model built for it."""
    import llmsim_magic

    _import_for(setup.model, *OUR_MODULES)

    def ask() -> int:
        report = llmsim_magic.trace(setup.model, **options_of(setup))
        return int(report.memory.loc["peak", "bytes"])

    return _answer(ask)


def accelerate(setup: Setup) -> Answer:
    """What `accelerate estimate-memory` prints as "Training using Adam".

    Its own functions, on the headless model that it builds, from a config instead of the hub. It
    knows neither batch nor context; `float16` is the name of its command for mixed precision.
    """
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    torch, transformers = _import_for(setup.model)

    def ask() -> int:
        with init_empty_weights():
            model = transformers.AutoModel.from_config(config_of(setup.model), dtype=torch.float32)
        size, _ = calculate_maximum_sizes(model)
        precision = "float32" if setup.precision == "fp32" else "float16"
        return int(max(estimate_training_usage(size, precision).values()))

    return _answer(ask)


def mem_tracker(setup: Setup) -> Answer:
    """`MemTracker` of torch around two steps of fake tensors, on the CPU as where there is no GPU.

    Parameters stay uninitialised, and AdamW is foreach as it is on a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    torch, _ = _import_for(setup.model, *(["peft"] if setup.lora_rank else []))

    def ask() -> int:
        with FakeTensorMode():
            model = _real_model(setup)
            trained = [each for each in model.parameters() if each.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True)
            ids = torch.zeros(setup.batch, setup.context, dtype=torch.long)
            tracker = MemTracker()
            tracker.track_external(model, optimizer, ids)
            with tracker:
                for _ in range(STEPS):
                    with torch.autocast("cpu", torch.bfloat16, enabled=setup.precision == "amp"):
                        loss = model(input_ids=ids, labels=ids).loss
                    loss.backward()
                    del loss
                    optimizer.step()
                    optimizer.zero_grad()
                    tracker.reset_mod_stats()  # of modules; it refuses a second step otherwise
        peak = tracker.get_tracker_snapshot("peak")
        return sum(int(parts["Total"]) for parts in peak.values())

    return _answer(ask)


def _real_model(setup: Setup) -> Any:
    """The model as the measured runs built it, on the current device."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    config = config_of(setup.model)
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model = getattr(transformers, config.architectures[0])(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    model.train()
    model.config.use_cache = False
    if setup.lora_rank:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=setup.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
        model.enable_input_require_grads()
    if setup.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _import_for(model: str, *names: str) -> tuple[Any, Any]:
    """Import torch, transformers, the model's classes and other modules."""
    config = config_of(model)
    importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    for name in names:
        importlib.import_module(name)
    return importlib.import_module("torch"), importlib.import_module("transformers")


def _answer(ask: Callable[[], int]) -> Answer:
    imports_gb = peak_gb()
    wall, cpu = time.perf_counter(), time.process_time()
    peak = ask()
    return Answer(
        peak_bytes=peak,
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        memory_gb=peak_gb() - imports_gb,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a trace of a step takes.

    Attributes:
        first_s: Seconds of the first one, the model built for it.
        warm_s: Seconds of a later one, the median.
        warm_cpu_s: Seconds of the processor for that, the median.
        memory_s: Seconds until its memory is known as well, the median.
        memory_gb: What the process needs at its peak, above the imports.
    """

    first_s: float
    warm_s: float
    warm_cpu_s: float
    memory_s: float
    memory_gb: float


def speed(setup: Setup, runs: int, replay: bool = True) -> Speed:
    """In a process of its own: the first trace of a step, and later ones."""
    import llmsim_magic

    _import_for(setup.model, *OUR_MODULES)
    imports_gb = peak_gb()

    def trace() -> Any:
        return llmsim_magic.trace(setup.model, replay=replay, **options_of(setup))

    def with_memory() -> Any:
        return trace().memory

    first = timed(with_memory)
    cpu: list[float] = []

    def trace_on_the_clock() -> Any:
        start = time.process_time()
        report = trace()
        cpu.append(time.process_time() - start)
        return report

    found = [timed(trace_on_the_clock) for _ in range(runs)]
    return Speed(
        first_s=first,
        warm_s=statistics.median(found),
        warm_cpu_s=statistics.median(cpu),
        memory_s=statistics.median(timed(with_memory) for _ in range(runs)),
        memory_gb=peak_gb() - imports_gb,
    )
