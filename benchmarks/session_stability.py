"""Memory and time of a thousand questions in one process.

Run `python -m benchmarks.session_stability`; it writes `benchmarks/session_stability.md`.
"""

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from dataclasses import dataclass, fields
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig, Qwen3Config

import llmsim_magic as llmsim
from llmsim_magic.records.errors import LlmsimError

PAGE = Path(__file__).with_suffix(".md")
# Numbers of questions: to warm up, to measure, and at either end of those to compare. Each is a
# multiple of the number of kinds, so that both states follow a question of the same kind.
WARM, MEASURED, EACH = 204, 1_008, 96


def _sizes(number: int) -> dict[str, Any]:
    """Sizes of a config that differ for every number."""
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
    """A module of a new class, as a notebook cell defines it each time it runs."""

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.lin(x).relu() + torch.rand(8))

    with torch.random.fork_rng(devices=[]):  # the session's random state stays unchanged
        return Mine()


def _expect_error(question: Callable[[], Any]) -> None:
    try:
        question()
    except LlmsimError:
        return
    raise AssertionError("the question was answered without an error")


def _export_files(number: int) -> None:
    report = llmsim.trace("gpt2", context=8, hardware="H100")
    with tempfile.TemporaryDirectory() as folder:
        report.to_csv(folder)
        report.to_html(Path(folder) / "page.html")


# Questions to ask; the number makes each a new one.
QUESTIONS: dict[str, Callable[[int], Any]] = {
    "a model of the catalogue": lambda n: llmsim.trace("gpt2", context=5 + n % 50).ops,
    "a decode step": lambda n: llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", context=n % 99 + 2),
    "a new config": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).summary,
    "its decode step": lambda n: llmsim.trace(Qwen3Config(**_sizes(n)), phase="decode").kernels,
    "a live module": lambda n: llmsim.trace(_fresh_module(), inputs=torch.ones(n % 9 + 1, 8)).ops,
    "a mistake": lambda n: _expect_error(
        lambda: llmsim.trace(_fresh_module(), inputs=torch.ones(2, n % 7 + 1))
    ),
    "an unknown config": lambda n: _expect_error(
        lambda: llmsim.trace(GPT2Config(n_head=7, n_embd=7 * n + 8), context=5)
    ),
    "a graph": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).dependency_graph().svg,
    "a sweep": lambda n: (
        llmsim.sweep(
            GPT2Config(
                n_layer=2,
                n_embd=32 + 4 * (n % 50),
                n_head=4,
                vocab_size=90 + n,
                bos_token_id=0,
                eos_token_id=0,
            ),
            batch=[1, 2],
            context=[3, 4],
        ).totals
    ),
    "sizes": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), hardware="H100").memory,
    "formulas": lambda n: llmsim.trace(LlamaConfig(**_sizes(n)), context=7).symbolic.totals,
    "files": _export_files,
}


@dataclass(frozen=True)
class State:
    """The resources that a process holds after garbage collection."""

    resident_bytes: int
    objects: int  # tracked by Python's garbage collector
    threads: int
    descriptors: int
    temporary_files: int
    cached: int  # entries of all caches in this package


def state() -> State:
    for _ in range(3):
        gc.collect()
    return State(
        int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        len(gc.get_objects()),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir(tempfile.gettempdir())),
        sum(caches().values()),
    )


def caches() -> dict[str, int]:
    """The size of every module-level collection and function cache of the package, by name."""
    return dict(_caches())


def _caches() -> Iterator[tuple[str, int]]:
    for name, module in sorted(sys.modules.items()):
        for key, value in sorted(vars(module).items()) if name.startswith("llmsim_magic.") else ():
            if hasattr(value, "cache_info"):
                if value.__module__ == name:
                    yield f"{name}.{key}", value.cache_info().currsize
            elif isinstance(value, Sized) and not key.startswith("__"):
                yield f"{name}.{key}", len(value)


def run_questions(numbers: Iterable[int], names: Collection[str] = QUESTIONS) -> list[float]:
    """The time of each question, in units of a constant workload timed right before and after it.

    The unit cancels the noise of a shared machine. The kinds of questions take turns.
    """
    times = []
    for number, name in zip(numbers, cycle(names), strict=False):
        unit = _seconds(_constant_work)
        asked = _seconds(partial(QUESTIONS[name], number))
        times.append(2 * asked / (unit + _seconds(_constant_work)))
    return times


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a function."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _constant_work() -> None:
    """A few milliseconds of what a trace does: Python calls and small torch kernels."""
    kept: dict[int, Any] = {}
    for number in range(2_000):
        kept[number % 97] = (number, torch.empty(2, device="meta").stride())


def medians_by_kind(times: list[float]) -> list[float]:
    """The median time of each kind of question."""
    return [statistics.median(times[place :: len(QUESTIONS)]) for place in range(len(QUESTIONS))]


def _page(before: State, after: State, times: list[float], grown: set[str]) -> Iterator[str]:
    yield from (
        "# What a thousand questions leave behind",
        "",
        f"{len(times):,} questions in one process, of {len(QUESTIONS)} kinds in turn, each about a",
        f"model, a context or a class that was not asked about before; {WARM} more came first.",
        "`python -m benchmarks.session_stability` writes this page.",
        "",
        "| the process holds | before | after | change |",
        "|---|--:|--:|--:|",
    )
    for field in fields(State):
        then, now = getattr(before, field.name), getattr(after, field.name)
        change = now / then - 1 if then else 0.0
        yield f"| {field.name.replace('_', ' ')} | {then:,} | {now:,} | {change:+.1%} |"
    first, last = medians_by_kind(times[:EACH]), medians_by_kind(times[-EACH:])
    yield from (
        "",
        "What a question takes, in units of a piece of work done beside each, which is always the",
        f"same: the medians of the first and of the last {EACH} questions.",
        "",
        "| question | first | last | change |",
        "|---|--:|--:|--:|",
    )
    for name, then, now in zip(QUESTIONS, first, last, strict=True):
        yield f"| {name} | {then:.1f} | {now:.1f} | {now / then - 1:+.1%} |"
    changes = [now / then for then, now in zip(first, last, strict=True)]
    yield f"| the median of all kinds | | | {statistics.median(changes) - 1:+.1%} |"
    yield from ("", "Entries of all that grew in our modules since the first question:", "")
    yield from ("| | entries |", "|---|--:|")
    for name in sorted(grown):
        yield f"| `{name.removeprefix('llmsim_magic.')}` | {caches()[name]:,} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=MEASURED)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        run_questions(range(1))
        started = caches()
        run_questions(range(WARM))
        before = state()
        times = run_questions(range(WARM, WARM + asked.questions))
        after = state()
    grown = {name for name, count in caches().items() if count != started.get(name, count)}
    PAGE.write_text("\n".join(_page(before, after, times, grown)), "utf-8")
    print(PAGE.read_text("utf-8"))


if __name__ == "__main__":
    main()
