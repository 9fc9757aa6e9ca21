"""A thousand questions in one process: what they leave in memory, and how long each takes.

Run `python -m benchmarks.flat`; it writes `benchmarks/flat.md`.
"""

import argparse
import gc
import importlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, Qwen3Config

import llmsim_magic as llmsim
from llmsim_magic.records.errors import LlmsimError

PAGE = Path(__file__).with_suffix(".md")
WARM, EACH = 200, 100  # questions before anything is measured, and at either end of what is


def _sizes(number: int) -> dict[str, Any]:
    """Sizes that no earlier config had."""
    return {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32 + number,
        "vocab_size": 90 + number,
        "max_position_embeddings": 512,
    }


def _fresh_module() -> nn.Module:
    """A module of a class that exists only for it, as a cell that is run again defines one."""

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.lin(x).relu() + torch.rand(8))

    return Mine()


def _refused(ask: Callable[[], Any]) -> None:
    try:
        ask()
    except LlmsimError:
        return
    raise AssertionError("that was answered")


def _exported(number: int) -> None:
    report = llmsim.trace("gpt2", context=8, hardware="H100")
    with tempfile.TemporaryDirectory() as folder:
        report.to_csv(folder)
        report.to_html(Path(folder) / "page.html")


# What a session may be asked, each made new by its number.
QUESTIONS: dict[str, Callable[[int], Any]] = {
    "a model of the catalogue": lambda n: llmsim.trace("gpt2", context=5 + n % 50).ops,
    "a decode step": lambda n: llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", context=n % 99 + 2),
    "a new config": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).summary,
    "its decode step": lambda n: llmsim.trace(Qwen3Config(**_sizes(n)), phase="decode").kernels,
    "a live module": lambda n: llmsim.trace(_fresh_module(), inputs=torch.ones(2, 8)).ops,
    "a mistake": lambda n: _refused(
        lambda: llmsim.trace(_fresh_module(), inputs=torch.ones(2, n % 7 + 1))
    ),
    "an unknown config": lambda n: _refused(
        lambda: llmsim.trace(GPT2Config(n_head=7, n_embd=7 * n + 8), context=5)
    ),
    "a graph": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).dependency_graph().svg,
    "a sweep": lambda n: llmsim.sweep(
        GPT2Config(n_layer=2, n_embd=32 + 4 * (n % 50), n_head=4, vocab_size=90 + n),
        batch=[1, 2],
        context=[3, 4],
    ).totals,
    "sizes": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), hardware="H100").memory,
    "formulas": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).symbolic.totals,
    "files": _exported,
}


@dataclass(frozen=True)
class State:
    """What a process holds."""

    resident: int  # bytes
    objects: int  # that Python's collector knows
    threads: int
    descriptors: int
    temporary: int  # files in the folder for such
    caches: dict[str, int]  # entries, by module and name


def state() -> State:
    """What this process holds, after it was tidied up."""
    for _ in range(3):
        gc.collect()
    return State(
        _resident(),
        len(gc.get_objects()),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir(tempfile.gettempdir())),
        dict(caches()),
    )


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def caches() -> Iterator[tuple[str, int]]:
    """Every collection and every cached function of our modules, with the number of its entries."""
    import sys

    for name, module in sorted(sys.modules.items()):
        if not name.startswith("llmsim_magic."):
            continue
        for key, value in sorted(vars(module).items()):
            if getattr(value, "__module__", name) != name:
                continue
            if hasattr(value, "cache_info"):
                yield f"{name}.{key}", value.cache_info().currsize
            elif isinstance(value, (dict, list, set)) and not key.startswith("__"):
                yield f"{name}.{key}", len(value)
    yield "capture.answers._REPEATS", len(importlib.import_module("llmsim_magic.capture.answers")._REPEATS._known)


def asked(number: int) -> list[float]:
    """Seconds of so many questions, every kind in turn."""
    times = []
    for place, ask in islice(enumerate(cycle(QUESTIONS.values())), number):
        begun = time.perf_counter()
        ask(place + asked.before)
        times.append(time.perf_counter() - begun)
    asked.before += number
    return times


asked.before = 0  # type: ignore[attr-defined]


def per_kind(times: list[float]) -> dict[str, float]:
    """The median seconds of each kind of question, of those asked in turn."""
    return {
        name: statistics.median(times[place :: len(QUESTIONS)])
        for place, name in enumerate(QUESTIONS)
    }
