"""Reads end-to-end times of whole passes: `end_to_end.csv.gz` and `published.csv`.

A row is used where a pass of a model of the catalogue on one device decides it. Engines that batch
in flight mix the prefills of new requests into decode steps: of `batch` requests that each write
`output` tokens, every step carries `batch ÷ output` prefills in the mean. That much is arithmetic;
queueing is not, so rows whose prefills take more than half as long as their steps are loaded, and
left out.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measured_kernels import UnusableRow, read
from llmsim_magic.analyses.time.calibration_fit import band_of
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.catalog import accelerators, models
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Band, Calibration
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.models.workloads import trace_workload
from llmsim_magic.simulate.request import Build

MOST_PREFILL = 0.5  # of a step; beyond it a row tells of load
SHORTEST_REPLY = 64
Row = Mapping[str, str]

# Models by the names that benchmarks give them; sizes are the same where the name is not.
SAME_SIZES = {
    "meta-llama-3-8b": "meta-llama/Llama-3.1-8B",
    "llama-3-8b": "meta-llama/Llama-3.1-8B",
    "llama-3-70b": "meta-llama/Llama-3.1-70B",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B",
    "llama-3.1-70b-instruct": "meta-llama/Llama-3.1-70B",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
}
# What a row calls the storage of weights: `wo` only stores them so, in groups of 32.
STORED = {
    "int8 wo": StoredDtypes(weights="int8"),
    "int4 wo g32": StoredDtypes(weights="int4", group=32),
    "fp8": StoredDtypes(weights="fp8", activations="fp8"),
}


@dataclass(frozen=True, slots=True)
class Pass:
    """A measured pass and what was predicted of it, in seconds; the bands are the operators'."""

    scored: str
    device: str
    what: str
    measured: float
    predicted: float
    operators_low: float
    operators_high: float


def passes(data: Path, calibration: Calibration | None = None) -> tuple[list[Pass], Counter[str]]:
    """Every usable row of both tables, and how many were left out for which reason."""
    found: list[Pass] = []
    left_out: Counter[str] = Counter()
    tables = (("end_to_end.csv.gz", _served), ("published.csv", _published))
    for name, of_row in tables:
        for row in read(data / name):
            try:
                found.append(of_row(row, calibration))
            except UnusableRow as why:
                left_out[f"{name}: {why}"] += 1
            except (LlmsimError, KeyError, ValueError) as why:
                left_out[f"{name}: {type(why).__name__}: {why}"] += 1
    return found, left_out


def _served(row: Row, calibration: Calibration | None) -> Pass:
    """An engine under a fixed number of requests at once: time per output token."""
    if row["mode"] != "agg":
        raise UnusableRow("prefill and decode on machines of their own: loaded")
    for name in ("pp_size", "moe_ep_size", "attention_dp_size"):
        if row.get(name) and float(row[name]) > 1:
            raise UnusableRow(f"{name} of more than one")
    tp = int(float(row.get("tp_size") or 1))
    model, device = model_named(row["model_path"]), _device(row["system"])
    stored = _stored(row.get("gemm_quant_mode") or row.get("precision") or "bf16")
    batch, read_, written = (int(float(row[n])) for n in ("batch_size", "isl", "osl"))
    known = (tp, device, stored, calibration)
    step = _time(model, "decode", batch, read_ + written // 2, *known)
    one = _time(model, "prefill", 1, read_, *known)
    carried = one.seconds * batch / written
    if carried > MOST_PREFILL * step.seconds:
        raise UnusableRow("loaded: prefills take more than half as long as steps")
    share = (step.seconds + carried) / step.seconds
    what = f"{model}, batch {batch}, {read_} + {written} tokens, tp {tp}, {row['backend']}"
    return _pass("decode_step", device, what, float(row["silicon_tpot_ms"]) / 1e3, step, share)


def _published(row: Row, calibration: Calibration | None) -> Pass:
    """One request alone: tokens per second read, or written."""
    metric = row["metric"].split(" (")[0]
    if metric not in ("decode_throughput", "prefill_throughput"):
        raise UnusableRow(f"{metric}: not the time of a pass")
    devices = int(float(row["n_gpus"] or 1))
    if devices > 1 and not row["notes"].startswith("TP"):
        raise UnusableRow("layers on several devices, one after the other")
    if "GCD" in row["hardware"]:
        raise UnusableRow("half of a package: the catalogue lists it whole")
    stored = _stored(row["dtype"])
    model, device = model_named(row["model"]), _device(row["hardware"])
    batch = int(float(row["batch"] or 1))
    tokens = int(float(row["input_len"] or 0)), int(float(row["output_len"] or 0))
    what = f"{model}, {row['dtype']}, {tokens[0]} + {tokens[1]} tokens, tp {devices}"
    known = (devices, device, stored, calibration)
    per_second = float(row["value"])
    if metric == "prefill_throughput":
        time = _time(model, "prefill", batch, tokens[0], *known)
        return _pass("prefill_step", device, what, batch * tokens[0] / per_second, time)
    # Where a row does not say how long the reply is, it is short.
    middle = max(tokens[0] + (tokens[1] or SHORTEST_REPLY) // 2, 1)
    time = _time(model, "decode", batch, middle, *known)
    return _pass("decode_step", device, what, batch / per_second, time)


def _pass(
    scored: str, device: Accelerator, what: str, measured: float, time: PassTime, share: float = 1.0
) -> Pass:
    lows, highs = ([getattr(o, name) for o in time.operators] for name in ("low", "high"))
    sums = (time.seconds * share, math.fsum(lows) * share, math.fsum(highs) * share)
    return Pass(scored, device.name, what, measured, *sums)


def _time(
    model: str,
    phase: str,
    batch: int,
    context: int,
    tp: int,
    device: Accelerator,
    stored: StoredDtypes,
    calibration: Calibration | None,
) -> PassTime:
    recipe = model_recipe(model, Build(parallel=Parallel(tp)))
    trace = trace_workload(recipe, Workload(phase, batch, context), replay=True)
    return latency(trace, device, calibration, stored=stored)


def _stored(text: str) -> StoredDtypes:
    word = text.strip().lower()
    if word in STORED:
        return STORED[word]
    try:
        arithmetic(word)
    except LlmsimError:
        raise UnusableRow(f"weights stored as {text}: no such kernels were fitted") from None
    return StoredDtypes()


@functools.cache
def model_named(name: str) -> str:
    wanted = name.lower().rpartition("/")[2]
    entry = models.find(SAME_SIZES.get(wanted, name))
    if entry is not None:
        return entry.name
    for entry in models.entries().values():
        spellings = (entry.name, *entry.aliases)
        if any(spelling.lower().rpartition("/")[2] == wanted for spelling in spellings):
            return entry.name
    raise UnusableRow(f"{name}: not in the catalogue of models")


def _device(name: str) -> Accelerator:
    """A device as its driver, an engine or a table names it, with or without its memory."""
    bare = re.sub(r"\b(GPU|\d+\s*GB)\b", "", name)
    for form in (name, bare):
        try:
            return accelerators.find(form)
        except LlmsimError:
            continue
    raise UnusableRow(f"{name}: not in the catalogue of accelerators")


def bands(found: list[Pass]) -> dict[str, Band]:
    """The band that each phase earned; a device counts as one however often it was measured."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for each in found:
        of_phase = ratios.setdefault(each.scored.removesuffix("_step"), {})
        of_phase.setdefault(each.device, []).append(math.log(each.measured / each.predicted))
    steps = np.linspace(0, 1, 101)
    return {
        phase: band_of(np.concatenate([np.quantile(logs, steps) for logs in devices.values()]))
        for phase, devices in ratios.items()
    }


def lines(found: list[Pass]) -> Iterator[str]:
    for each in found:
        error = each.predicted / each.measured - 1
        yield (
            f"{each.scored} {each.device} {each.what}: measured {each.measured * 1e3:.2f} ms, "
            f"predicted {each.predicted * 1e3:.2f} ms ({error:+.0%})"
        )
