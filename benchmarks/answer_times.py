"""Times an answer from the request to its complete HTML, by what the kernel was asked before.

    python benchmarks/answer_times.py [--runs 5] [--only WORD] [--write]

Each figure is the median over fresh processes, which have imported torch and transformers:
`first` of the first question of all, `after another` after the same line for another model, and
`again` of the same line once more. `--write` puts the table into `answer_times.md` beside this
file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

SWEEP = "--batch 1,2,4,8,16 --context 1,16,128,512,1024,2048,4096 --phase both --multi-config"
LARGE = "meta-llama/Llama-3.1-70B"
# model, another model, options, seconds that it may take once the kernel is warm
ROWS = (
    ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B", "--multi-config", 0.5),
    ("Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B", SWEEP, 3.0),
    ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", "--hardware all", 3.0),
    (LARGE, "Qwen/Qwen2.5-72B", "--tp 4 --memory", 2.0),
    (LARGE, "Qwen/Qwen2.5-72B", "--tp 4 --memory --hardware L4", 2.0),
)
SCRIPT = """
import importlib, json, resource, sys, time
import torch, transformers
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.simulate.answer import answer

def ask(line):
    start = time.perf_counter()
    report = answer(parse_line(line, {{}}).request)
    answered = time.perf_counter()
    size = len(report._repr_mimebundle_()["text/html"])
    end = time.perf_counter()
    return {{"total": end - start, "report": answered - start, "size": size}}

found = []
for line in {lines!r}:
    found.append(ask(line))
print("RESULT" + json.dumps(found))
"""
HEAD = ("line", "first", "after another", "again", "of which HTML", "HTML", "target", "holds")


def _process(*lines: str) -> list[dict[str, float]]:
    """The times of lines that are asked one after the other in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(lines=lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    found: list[dict[str, float]] = json.loads(line.removeprefix("RESULT"))
    return found


def rows(runs: int, only: str) -> Iterator[tuple[str, ...]]:
    for model, other, options, limit in ROWS:
        line = f"{model} {options}"
        if only not in line:
            continue
        cold = [_process(line, line) for _ in range(runs)]
        warm = [_process(f"{other} {options}", line)[-1] for _ in range(runs)]
        first, another, again = (
            statistics.median(each["total"] for each in found)
            for found in ((f for f, _ in cold), warm, (a for _, a in cold))
        )
        html = statistics.median(each["total"] - each["report"] for each in warm)
        holds = max(another, again) < limit
        yield (
            f"`{line}`",
            f"{first:.2f} s",
            f"{another:.2f} s",
            f"{again:.2f} s",
            f"{html:.2f} s",
            f"{warm[-1]['size'] / 1000:.0f} kB",
            f"< {limit:g} s",
            "yes" if holds else "no",
        )


def page(runs: int, only: str) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    lines = [HEAD, ("---",) * len(HEAD), *rows(runs, only)]
    return "\n".join(
        (
            "# Times of answers",
            "",
            f"`python benchmarks/answer_times.py --write`: medians of {runs} processes, from the "
            "request to the complete HTML. `of which HTML` is of `after another`.",
            "",
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"{versions}.",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        )
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--only", default="", help="lines that contain this")
    arguments.add_argument("--write", action="store_true", help="into answer_times.md")
    given = arguments.parse_args()
    text = page(given.runs, given.only)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
