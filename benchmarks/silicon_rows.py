"""Reads runs of models on a GPU, as `benchmarks.silicon` writes them, as samples for the fit.

A file of JSON lines. `infer`: `model`, `phase`, `batch`, `context`, `eager_s`, `graph_s`,
`peak_above` (bytes above what was allocated before the pass). `profile`: `model`, `batch`,
`context`, and `rows` of `kernel`, `input_shapes`, `count`, `device_us`. Each may name `device`,
`torch` and `transformers`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llmsim_magic as llmsim
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.analyses.torch_time.constants_fit import PassSample
from llmsim_magic.analyses.torch_time.kernels import torch_kernels
from llmsim_magic.analyses.torch_time.launch_time import makes_masks, operator_work
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.torch_kernel import TorchKernel, TorchSample
from llmsim_magic.records.trace.trace import Trace

Row = dict[str, Any]
FIRST_TRANSFORMERS = "5.17.0"  # of rows that name none: those of the first measurements
_PROFILER_NAMES = {  # the kernel that each ATen op comes to
    "_to_copy": "copy",
    "clone": "copy",
    "index_put": "_index_put_impl",
    "scaled_dot_product_attention": "_cudnn_attention_forward",
    "embedding": "gather",
}
_OPERANDS = {"_cudnn_attention_forward": 3, "index": 1, "gather": 1}  # whose shapes are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPass:
    """A measured pass: its row, launch and work."""

    row: Row
    sample: PassSample

    @property
    def model(self) -> str:
        return str(self.row["model"])

    @property
    def name(self) -> str:
        return f"transformers_{self.sample.launch}_{self.row['phase']}"


def read_file(path: Path) -> list[Row]:
    """Every row of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def read_rows(folder: Path, kind: str) -> list[Row]:
    """The rows of a kind in every file of a folder, without those that failed."""
    rows = (row for path in sorted(folder.glob("*.jsonl")) for row in read_file(path))
    return [row for row in rows if row.get("kind") == kind and "error" not in row]


@cache
def _trace(model: str, phase: str, batch: int, context: int) -> Trace:
    report = llmsim.trace(model, phase=phase, batch=batch, context=context, dtype="bfloat16")
    return report.trace


def trace_of(row: Row) -> Trace:
    """The record of the pass of a row, in bfloat16 as it was measured."""
    return _trace(row["model"], row.get("phase", "prefill"), row["batch"], row["context"])


def predicted_peak(trace: Trace) -> int:
    """What `peak_above` should be: bytes of the activations and of the cache that is returned."""
    needed = memory(trace)
    return needed.activations + needed.cache


def measured_passes(rows: Sequence[Row], accelerator: Accelerator) -> Iterator[MeasuredPass]:
    """Every launch of every pass."""
    for row in rows:
        trace = trace_of(row)
        version = str(row.get("transformers", FIRST_TRANSFORMERS))
        for launch in ("eager", "graph"):
            if f"{launch}_s" not in row:
                continue
            with_masks = makes_masks(launch, version)
            work = operator_work(trace, accelerator, with_masks=with_masks)
            sample = PassSample(work=work, launch=launch, seconds=row[f"{launch}_s"])
            yield MeasuredPass(row=row, sample=sample)


def profiled_kernels(
    rows: Sequence[Row], accelerator: Accelerator
) -> Iterator[tuple[str, TorchSample]]:
    """Kernels of profiles with their models, where name and shapes tell which kernel it is."""
    for row in rows:
        known = _kernels_by_shapes(trace_of(row), accelerator)
        for profiled in row["rows"]:
            name, shapes = _profiled_key(profiled)
            alike = known.get((name, shapes), set())
            if len({kernel.kind for kernel in alike}) == 1:
                seconds = profiled["device_us"] / profiled["count"] * 1e-6
                yield row["model"], TorchSample(next(iter(alike)), seconds)


def _kernels_by_shapes(
    trace: Trace, accelerator: Accelerator
) -> dict[tuple[str, tuple[tuple[int, ...], ...]], set[TorchKernel]]:
    record = trace.recorded
    found: dict[tuple[str, tuple[tuple[int, ...], ...]], set[TorchKernel]] = {}
    groups = zip(record.kernels_by_operator, torch_kernels(record, accelerator), strict=True)
    for kernels, sizes in groups:
        if len(kernels) != len(sizes):
            continue  # some are made of several, which a profile shows one by one
        for kernel, size in zip(kernels, sizes, strict=True):
            name = short_name(kernel.name).rstrip("_")
            name = _PROFILER_NAMES.get(name, name)
            shapes = tuple(record.shapes(kernel.inputs))[: _OPERANDS.get(name)]
            found.setdefault((name, shapes), set()).add(size)
    return found


def _profiled_key(profiled: Row) -> tuple[str, tuple[tuple[int, ...], ...]]:
    name = str(profiled["kernel"]).rpartition("::")[2].rstrip("_")
    text = profiled["input_shapes"]
    if not text.endswith("]]"):
        return name, ()  # cut off
    shapes = tuple(tuple(shape) for shape in json.loads(text) if shape)
    if name == "copy":
        shapes = shapes[1:]  # the destination stands first
    return name, shapes[: _OPERANDS.get(name)]
