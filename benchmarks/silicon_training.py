"""Scores the memory of training steps against runs of models on a GPU.

Rows are JSON lines of kind `train`: `model`, `batch`, `context`, `checkpoint`, `dtype`, `amp`,
`lora` (rank of adapters at every linear layer, 0 for none), `optimizer` (of `torch.optim`), `over`
(changes of the config); bytes of `torch.cuda` in the first two steps, `_0` and `_1`:
`after_forward`, `peak_forward`, and so on of `backward` and `step`, each peak since the step began;
`peak_reserved`; `start`, bytes from before the model was built.

The runs were made by one process, and its allocator is put into the state in which it was:

* `start` is a workspace of cuBLAS for each thread that had multiplied. In the first run the thread
  of backward got its own, inside a segment of 298 MiB whose rest stays free for the later runs.
* Models were built with a head of their own, which was dropped when it was tied to the embedding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llmsim_magic as llmsim
from benchmarks.scored import Scored
from benchmarks.silicon_rows import Row, read_rows
from llmsim_magic.analyses.allocations.caching_allocator import CachingAllocator
from llmsim_magic.analyses.allocations.step_allocations import (
    StepAllocations,
    StepBytes,
    replay_steps,
)
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.trace import Trace

TRAIN_MEMORY, TRAIN_RESERVED = "train_memory", "train_reserved"
TRAIN_CLASSES = (TRAIN_MEMORY, TRAIN_RESERVED)
_STAGES = {"forward": "forward", "backward": "backward", "step": "optimizer"}
_SHARE = 0.01  # how far off a figure may be
_WORKSPACE = 32 * 2**20  # of cuBLAS on Hopper, for each thread that multiplies
_SEGMENT = 298 * 2**20  # that holds the second workspace of the process
_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """Bytes of one figure of a run, such as `peak_backward_1`, beside the prediction."""

    row: Row
    figure: str
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScore:
    """One run: its figures, and what was reserved beside the predicted band.

    `gap` says why the run is not predicted.
    """

    row: Row
    figures: tuple[StepScore, ...] = ()
    reserved: Scored | None = None
    gap: str = ""

    @property
    def name(self) -> str:
        """The run in words, such as `gpt2, 8 × 1024, checkpointing`."""
        row = self.row
        options = (
            f"LoRA {row['lora']}" if row.get("lora") else "",
            "amp" if row.get("amp") else str(row["dtype"]).removeprefix("torch."),
            row["optimizer"] if row.get("optimizer", "AdamW") != "AdamW" else "",
            "checkpointing" if row.get("checkpoint") else "",
            *(str(value) for value in row.get("over", {}).values()),
        )
        return ", ".join(
            (row["model"], f"{row['batch']} × {row['context']}", *filter(None, options))
        )


def runs(folder: Path) -> list[RunScore]:
    """Every training run in the files of a folder; those that ran out of memory have no figures."""
    return [_scored(row) for row in read_rows(folder, "train") if "oom" not in row]


def of_training(found: Iterable[RunScore]) -> Iterator[Scored]:
    """The figures of all runs, each with a band of one per cent, and what was reserved."""
    for run in found:
        for each in run.figures:
            give = _SHARE * each.predicted
            yield Scored(
                *(TRAIN_MEMORY, _device(run.row), float(each.measured), float(each.predicted)),
                *(each.predicted - give, each.predicted + give),
            )
        if run.reserved is not None:
            yield run.reserved


def table(found: Iterable[RunScore]) -> Iterator[str]:
    """The errors of each run in per cent, as Markdown: of each figure in the second step."""
    names = [f"{what} {stage}" for stage in _STAGES for what in ("peak", "after")]
    yield f"| run | {' | '.join(names)} | worst of the first step | reserved |"
    yield f"|---|{'--:|' * (len(names) + 2)}"
    gaps = []
    for run in found:
        if run.gap:
            gaps.append(f"* {run.name}: {run.gap}")
            continue
        steady = [each.error for each in run.figures if each.figure.endswith("_1")]
        first = [each.error for each in run.figures if each.figure.endswith("_0")]
        errors = [*steady, max(first, key=abs)]
        if run.reserved is not None:
            errors.append(run.reserved.predicted / run.reserved.measured - 1)
        yield f"| {run.name} | {' | '.join(f'{100 * error:+.2f}' for error in errors)} |"
    if gaps:
        yield ""
        yield from gaps


def _scored(row: Row) -> RunScore:
    try:
        trace = trace_of_step(row)
    except LlmsimError as error:
        return RunScore(row=row, gap=str(error))
    found = _replayed(trace, row["start"])
    figures = [
        StepScore(row=row, figure=name, measured=row[name] - row["start"], predicted=nbytes)
        for number, step in enumerate((found.first, found.steady))
        for name, nbytes in step_figures(step, number).items()
    ]
    band = memory(trace).reserved
    reserved = None
    if band is not None and "peak_reserved" in row:
        predicted = found.steady.reserved + min(row["start"], 2 * _WORKSPACE)
        reserved = Scored(
            *(TRAIN_RESERVED, _device(row), float(row["peak_reserved"]), float(predicted)),
            *(float(band.low), float(band.high)),
        )
    return RunScore(row=row, figures=tuple(figures), reserved=reserved)


def step_figures(step: StepBytes, number: int) -> dict[str, int]:
    """What `torch.cuda` tells after each pass of a step; peaks are of the step up to there."""
    found, most = {}, 0
    for name, stage in _STAGES.items():
        nbytes = step.stages[stage]
        most = max(most, nbytes.peak)
        found |= {f"peak_{name}_{number}": most, f"after_{name}_{number}": nbytes.after}
    return found


def _replayed(trace: Trace, start: int) -> StepAllocations:
    """The steps of a run on the allocator as it was."""
    allocator, workspaces = CachingAllocator(), {}
    if start < 2 * _WORKSPACE:
        workspaces = {_first_product_of_backward(trace): _WORKSPACE}
    else:
        rest = allocator.allocate(_SEGMENT - _WORKSPACE)
        if rest is not None:
            allocator.free(rest)
    dropped = [each.nbytes for each in trace.parameters if each.tied_to is not None]
    return replay_steps(trace, allocator, dropped=dropped, workspaces=workspaces)


def _first_product_of_backward(trace: Trace) -> int:
    record = trace.unrolled
    return next(
        place
        for place, kernel in enumerate(record.kernels)
        if kernel.name.startswith(_PRODUCTS)
        and kernel.operator is not None
        and record.operators[kernel.operator].part != "forward"
    )


def trace_of_step(row: Row) -> Trace:
    """The record of a run's step.

    Raises:
        LlmsimError: It cannot be traced.
    """
    over = dict(row.get("over", {}))
    options: dict[str, Any] = {"attn": over.pop("attn_implementation", None)}
    if over:
        raise LlmsimError(f"changes of the config are not read: {', '.join(over)}")
    if row.get("amp"):
        options["precision"] = "amp"
    else:
        options["dtype"] = str(row["dtype"]).removeprefix("torch.")
    if row.get("lora"):
        rank = row["lora"]
        options["lora"] = f"r={rank},alpha={2 * rank},targets=all-linear"
    return llmsim.trace(
        row["model"],
        phase="train",
        batch=row["batch"],
        context=row["context"],
        checkpointing=row["checkpoint"],
        optimizer=str(row.get("optimizer", "AdamW")).lower(),
        **options,
    ).trace


@cache
def _device_named(name: str) -> str:
    known = accelerators.of_driver(name)
    return name if known is None else known.name


def _device(row: Mapping[str, Any]) -> str:
    return _device_named(str(row["device"]))
