"""Times the first answer of a process: in a terminal and in a notebook's kernel.

    python benchmarks/process_start.py [--runs 5]

Rows are taken in turn, once in each round, and each is shown beside its base of the same round.
Everything runs once before it is timed, so that files are in the system's cache and modules are
compiled. Records are kept in a folder of their own.
"""

import argparse
import os
import platform
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jupyter_client.manager import start_new_kernel

MODEL, CLASS = "Qwen/Qwen3-0.6B", "Qwen3ForCausalLM"
TYPING_S = 5.0
PANDAS = "import pandas"
IMPORTS = f"import torch; from transformers import {CLASS}"
MAX_ANSWER_S = 300


@dataclass(frozen=True)
class Row:
    """What is timed, the label of its base if it has one, and its target in words."""

    label: str
    seconds: Callable[[], float]
    base: str = ""
    target: str = ""


def python(*arguments: str, records: Path | None = None) -> float:
    """Seconds from the start of a process of Python to its end."""
    environment = os.environ | {"LLMSIM_CACHE": "off" if records is None else str(records)}
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def terminal(view: str, records: Path | None = None) -> float:
    """Seconds that `python -m llmsim_magic` takes for a view."""
    return python("-m", "llmsim_magic", MODEL, view, records=records)


def kernel(line: str, typing_s: float, records: Path | None = None) -> float:
    """Seconds of a new kernel's first answer, typed some time after `%load_ext`."""
    environment = os.environ | {"LLMSIM_CACHE": "off" if records is None else str(records)}
    manager, client = start_new_kernel(kernel_name="python3", env=environment)
    try:
        _run_cell(client, "%load_ext llmsim_magic")
        time.sleep(typing_s)
        started = time.perf_counter()
        _run_cell(client, line)
        return time.perf_counter() - started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _run_cell(client: object, code: str) -> None:
    asked = client.execute(code)  # type: ignore[attr-defined]
    limit = time.monotonic() + MAX_ANSWER_S
    while time.monotonic() < limit:
        try:
            message = client.get_iopub_msg(timeout=1)  # type: ignore[attr-defined]
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != asked:
            continue
        if message["msg_type"] == "error":
            raise RuntimeError(message["content"]["evalue"])
        if message["content"].get("execution_state") == "idle":
            return
    raise TimeoutError(code)


def rows_of(records: Path) -> list[Row]:
    """Every row, its base before it."""
    summary = f"%llmsim {MODEL} --summary"
    return [
        Row(f'`python -c "{PANDAS}"`', partial(python, "-c", PANDAS)),
        Row(
            "terminal `--summary`, asked before",
            partial(terminal, "--summary", records),
            f'`python -c "{PANDAS}"`',
            "0.7 s, 1.5 × the base",
        ),
        Row(
            "terminal `--multi-config`, asked before",
            partial(terminal, "--multi-config", records),
            f'`python -c "{PANDAS}"`',
            "1.0 s",
        ),
        Row(
            "notebook, first answer of a kernel, model asked before",
            partial(kernel, summary, 0.0, records),
            target="0.6 s",
        ),
        Row(
            f"notebook, new model, {TYPING_S:g} s after `%load_ext`",
            partial(kernel, summary, TYPING_S),
            target="1.5 s",
        ),
        Row(f"`import torch` and the class {CLASS}", partial(python, "-c", IMPORTS)),
        Row(
            "terminal, new model",
            partial(terminal, "--summary"),
            f"`import torch` and the class {CLASS}",
            "1.1 × the base + 0.5 s",
        ),
    ]


def measure(rows: list[Row], runs: int) -> dict[str, list[float]]:
    """Seconds of each row in each round, after one round that does not count."""
    for row in rows:
        row.seconds()
    found: dict[str, list[float]] = {row.label: [] for row in rows}
    for _ in range(runs):
        for row in rows:
            found[row.label].append(row.seconds())
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    folder = Path(tempfile.mkdtemp(prefix="llmsim-start-"))
    # As after an installation by pip, which compiles every module.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    try:
        rows = rows_of(folder / "records")
        found = measure(rows, runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs;")
    print(f"medians of {runs} rounds; file caches are warm.\n")
    print("| what | time | ÷ base | target |\n|---|--:|--:|---|")
    for row in rows:
        seconds, bases = found[row.label], found.get(row.base, [])
        ratio = (
            statistics.median(a / b for a, b in zip(seconds, bases, strict=True)) if bases else 0
        )
        shown = f"{ratio:.2f}" if bases else ""
        print(f"| {row.label} | {statistics.median(seconds):.2f} s | {shown} | {row.target} |")


if __name__ == "__main__":
    main()
