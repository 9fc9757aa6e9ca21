"""Published times of generating tokens with plain transformers, on devices other than ours.

A CSV file with `model`, `dtype`, `quant`, `device`, `n_devices`, `batch`, `input_len`,
`output_len`, `e2e_s` and `framework`. They tell how far the time of a host carries over. Left out
are runs in parallel or quantised, mixtures of experts, whose experts older releases ran in a loop,
and contexts beyond 8,192 tokens, where older releases copy more than today's.
"""

import csv
import gzip
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.routers import routed_experts
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators, models
from llmsim_magic.records.errors import LlmsimError

MOST_TOKENS = 8192


def generation_logs(path: Path) -> Iterator[float]:
    """log(measured ÷ predicted) of every run that can be predicted."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            guess = _predicted(row)
            if guess is not None:
                yield math.log(float(row["e2e_s"]) / guess)


def _predicted(row: Mapping[str, str]) -> float | None:
    """Seconds of the prefill and of all steps; None for a run of another kind."""
    is_plain = row["framework"].startswith("transformers") and not row["quant"]
    if not is_plain or row["dtype"] not in ("bf16", "fp16"):
        return None
    try:
        read, written, seconds = (float(row[name]) for name in ("input_len", "output_len", "e2e_s"))
        devices, batch = float(row["n_devices"]), int(float(row["batch"]))
        device = accelerators.find(row["device"])
    except (ValueError, LlmsimError):
        return None
    name = _catalogue_name(row["model"])
    if name is None or devices != 1 or not seconds or read + written > MOST_TOKENS:
        return None
    contexts = {"prefill": max(int(read), 1), "decode": int(read + written / 2)}
    each = {}
    for phase, context in contexts.items():
        trace = llmsim.trace(name, phase=phase, batch=batch, context=context).trace
        if routed_experts(trace):
            return None
        each[phase] = transformers_time(trace, device, "eager").seconds
    return each["prefill"] + written * each["decode"]


def _catalogue_name(model: str) -> str | None:
    """The hub id in the catalogue, of an instruct model that of its base if need be."""
    for name in (model, f"Qwen/{model}", f"Qwen/{model.removesuffix('-Instruct')}"):
        if models.find(name) is not None:
            return name
    return None
