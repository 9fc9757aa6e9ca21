"""Asks three tools for the memory of training steps, and holds their answers against a GPU.

    python -m benchmarks.training [--runs 3] [--speed-only] [--write]

The tools are this project, `accelerate estimate-memory` and torch's `MemTracker` (see
`training_tools.py`); the steps are those of `training_runs.csv`, which ran on an H100. Each answer
is that of a fresh process, and a round asks every tool, so that all share the noise of the machine.
Then come the targets of speed. `--write` puts the tables into `training.md`.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from importlib import metadata
from pathlib import Path

from benchmarks.peers import judged, short, table
from benchmarks.timing import Process, say
from benchmarks.training_tools import (
    Answer,
    Measured,
    Setup,
    Speed,
    Tool,
    accelerate,
    measured_runs,
    mem_tracker,
    ours,
    speed,
)

TOOLS: dict[str, Tool] = {"ours": ours, "accelerate": accelerate, "MemTracker": mem_tracker}
SMALL = Setup(model="Qwen/Qwen3-0.6B", batch=4, context=1024)
SMALL_CHECKPOINTED = Setup(model="Qwen/Qwen3-0.6B", batch=4, context=1024, checkpointing=True)
LARGE = Setup(model="meta-llama/Llama-3.1-405B", batch=1, context=4096, checkpointing=True)
_WITHOUT = "without replay"
_LARGE = "Llama-3.1-405B, checkpointing"
_PACKAGES = ("torch", "transformers", "accelerate")
SMALL_S, LARGE_S, LARGE_GB = 0.3, 3.0, 1.0  # the targets


def ask_all(measured: Iterable[Measured], runs: int) -> dict[Setup, dict[str, Answer | str]]:
    """Answers of every tool by setup, medians over fresh processes; a failure is a sentence."""
    return {run.setup: _ask_tools(run.setup, runs) for run in measured}


def _ask_tools(setup: Setup, runs: int) -> dict[str, Answer | str]:
    found: dict[str, list[Answer]] = {name: [] for name in TOOLS}
    failures: dict[str, Answer | str] = {}
    for turn in range(runs):
        for name, tool in TOOLS.items():
            if name in failures:
                continue
            with Process() as fresh:
                try:
                    found[name].append(fresh(tool, setup))
                except RuntimeError as error:
                    failures[name] = str(error)
            say(f"{setup}, round {turn + 1}: {name}: {failures.get(name) or found[name][-1]}")
    return {name: failures.get(name) or median_answer(found[name]) for name in TOOLS}


def median_answer(answers: list[Answer]) -> Answer:
    """The peak, which all have, and medians of what it took."""
    _, wall, cpu, memory = (
        statistics.median(values) for values in zip(*map(astuple, answers), strict=True)
    )
    return Answer(peak_bytes=answers[0].peak_bytes, wall_s=wall, cpu_s=cpu, memory_gb=memory)


def errors_table(
    measured: Iterable[Measured], answers: dict[Setup, dict[str, Answer | str]]
) -> str:
    """How far each tool is from the device."""
    rows = []
    for run in measured:
        cells = [_error(answers[run.setup][name], run.peak_bytes) for name in TOOLS]
        rows.append((str(run.setup), f"{run.peak_bytes / 1e9:.2f} GB", *cells))
    every = [_errors(name, measured, answers) for name in TOOLS]
    medians = [f"{statistics.median(map(abs, each)):.1%}" if each else "" for each in every]
    rows.append(("median of absolute errors", "", *medians))
    return table(("step", "H100", *TOOLS), rows)


def _errors(
    name: str, measured: Iterable[Measured], answers: dict[Setup, dict[str, Answer | str]]
) -> list[float]:
    return [
        answer.peak_bytes / run.peak_bytes - 1
        for run in measured
        if isinstance(answer := answers[run.setup][name], Answer)
    ]


def _error(answer: Answer | str, peak_bytes: int) -> str:
    if isinstance(answer, str):
        return answer
    return f"{answer.peak_bytes / 1e9:.2f} GB ({answer.peak_bytes / peak_bytes - 1:+.1%})"


def costs_table(answers: dict[Setup, dict[str, Answer | str]]) -> str:
    """What an answer takes: seconds, those of the processor, and memory."""
    rows = [
        (str(setup), *(_cost(answer) for answer in found.values()), _ratio(found))
        for setup, found in answers.items()
    ]
    return table(("step", *TOOLS, "MemTracker ÷ ours"), rows)


def _cost(answer: Answer | str) -> str:
    if isinstance(answer, str):
        return ""
    return f"{answer.wall_s:.2f} s ({answer.cpu_s:.2f} s), {answer.memory_gb:.2f} GB"


def _ratio(found: dict[str, Answer | str]) -> str:
    own, other = found["ours"], found["MemTracker"]
    if isinstance(own, str) or isinstance(other, str):
        return ""
    return short(other.cpu_s / own.cpu_s)


def speeds(runs: int) -> dict[str, Speed]:
    """What our traces take, each in a process of its own."""
    found = {}
    for name, setup, replay in (
        ("Qwen3-0.6B", SMALL, True),
        ("Qwen3-0.6B, without replay", SMALL, False),
        ("Qwen3-0.6B, checkpointing", SMALL_CHECKPOINTED, True),
        ("Qwen3-0.6B, checkpointing, without replay", SMALL_CHECKPOINTED, False),
        (_LARGE, LARGE, True),
    ):
        with Process() as fresh:
            found[name] = fresh(speed, setup, runs, replay)
        say(f"{name}: {found[name]}")
    return found


def speed_table(found: dict[str, Speed]) -> str:
    """What traces take."""
    head = ("step", "first, s", "warm, s", "of the processor, s", "and its memory, s", "peak, GB")
    rows = [(name, *map(short, astuple(each))) for name, each in found.items()]
    return table(head, rows)


def targets(found: dict[str, Speed]) -> Iterator[tuple[str, ...]]:
    """Each target with its figure and whether it holds."""
    small, large = found["Qwen3-0.6B"], found[_LARGE]
    for name, each, limit in (("Qwen3-0.6B", small, SMALL_S), (_LARGE, large, LARGE_S)):
        yield judged(f"{name}, warm trace", each.warm_s, "≤", limit, " s")
        yield judged(f"{name}, of the processor", each.warm_cpu_s, "≤", limit, " s")
    yield judged(f"{_LARGE}, peak above the imports", large.memory_gb, "≤", LARGE_GB, " GB")


def replay_table(found: dict[str, Speed]) -> str:
    """Seconds of the processor with replays and without."""
    rows = []
    for name in ("Qwen3-0.6B", "Qwen3-0.6B, checkpointing"):
        with_replay, without = (found[each].warm_cpu_s for each in (name, f"{name}, {_WITHOUT}"))
        rows.append((name, short(with_replay), short(without), short(without / with_replay)))
    return table(("step", "replay, s", "no replay, s", "ratio"), rows)


def page(runs: int, speed_only: bool) -> str:
    found = speeds(max(runs, 3))
    parts = [
        "# Training steps beside other tools",
        f"`python -m benchmarks.training --write`: medians of {runs}, measured in turn, each "
        "answer in a fresh process.",
        machine(),
        "## Targets",
        f"{SMALL}; {LARGE}. A trace has one thread, so the seconds of the processor are those of a "
        "quiet machine.",
        table(("what", "figure", "target", "holds"), targets(found)),
        "## Speed of a trace",
        "The first trace builds the model; warm ones find it built, and no record kept. The last "
        "column is the peak of the process above the imports.",
        speed_table(found),
        "A layer that repeats an earlier one is replayed, forward and backward:",
        replay_table(found),
    ]
    if not speed_only:
        measured = measured_runs()
        answers = ask_all(measured, runs)
        parts += [
            "## How far each tool is from the device",
            "Peak of allocated bytes of a steady step with AdamW (`training_runs.csv`).",
            errors_table(measured, answers),
            "`accelerate estimate-memory` multiplies the bytes of the parameters, for a batch of "
            "one; it has no option for batch, context, checkpointing or LoRA. `MemTracker` runs "
            "two steps of the model on fake tensors on the CPU, with some 25 lines of code of the "
            "user's, on the CPU's kernels: attention with dropout, as gpt2 and BERT have it, "
            "writes its scores out there.",
            "## What an answer takes",
            "Seconds from the config to the peak without imports, in brackets those of the "
            "processor, and the memory of the process above the imports. The ratio is of seconds "
            "of the processor.",
            costs_table(answers),
        ]
    return "\n\n".join(parts)


def machine() -> str:
    found = [f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"]
    found += [f"{name} {metadata.version(name)}" for name in _PACKAGES]
    return ", ".join(found) + "."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--speed-only", action="store_true", help="leave out the other tools")
    arguments.add_argument("--write", action="store_true", help="into training.md beside this file")
    given = arguments.parse_args()
    text = page(given.runs, given.speed_only)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
