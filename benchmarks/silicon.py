"""Measures models on the CUDA device of this machine, and holds the predictions against them.

    python -m benchmarks.silicon [--out FILE.jsonl] [--models NAME,…] [--seconds 480]
    python -m benchmarks.silicon --report FILE.jsonl

First come two ceilings and a grid of single kernels. Then models with random weights, by default
those of the catalogue that fit into memory: each is timed in prefill and decode, eager and captured
in a CUDA graph, and its peak memory is taken. Rows are JSON, of kind `ceiling`, `kernel`, `infer`
or `profile`. `--report` needs no device: it predicts what another run has measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import torch
import transformers

from benchmarks.silicon_kernels import ceilings, kernels
from benchmarks.silicon_models import LOADS, fitting, measured
from benchmarks.silicon_report import report
from benchmarks.silicon_rows import Row, read_file
from llmsim_magic.capture.configs.resolve import find_config
from llmsim_magic.catalog import models
from llmsim_magic.records.errors import LlmsimError

KERNELS_SHARE = 0.3  # of the time, at most
LOAD_S = 12.0  # what a load of a model takes, so that none begins with less time left


def main(arguments: list[str] | None = None) -> None:
    asked = _parser().parse_args(arguments)
    names = [name.strip() for name in asked.models.split(",") if name.strip()]
    try:
        rows = (
            read_file(asked.report) if asked.report else _measured(names, asked.seconds, asked.out)
        )
    except (LlmsimError, OSError) as error:
        sys.exit(f"silicon: {error}")
    print("\n".join(report(rows)))


def _measured(names: list[str], seconds: float, out: Path | None) -> list[Row]:
    if not torch.cuda.is_available():
        raise LlmsimError(
            "a CUDA device is needed, and torch finds none on this machine; "
            "--report FILE.jsonl predicts what was measured on another"
        )
    for name in names:
        find_config(name)  # an unknown model is an error before anything is measured
    device = torch.device("cuda", torch.cuda.current_device())
    found = measure(device, names or _fitting(device), seconds)
    with out.open("a", encoding="utf-8") if out else nullcontext() as file:
        return list(_written(_labelled(found, torch.cuda.get_device_name(device)), file))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("--models", default="", help="hub ids; by default those that fit")
    parser.add_argument("--seconds", type=float, default=480.0, help="how long to measure")
    parser.add_argument("--report", type=Path, help="predict the rows of this file")
    return parser


def measure(device: torch.device, names: Iterable[str], seconds: float) -> Iterator[Row]:
    """Rows of everything, until the time is over."""
    start = time.monotonic()

    def left() -> float:
        return start + seconds - time.monotonic()

    yield from ceilings(device)
    yield from kernels(device, lambda: left() > (1 - KERNELS_SHARE) * seconds)
    for name in names:
        if left() < LOAD_S:
            return
        yield from measured(name, device, LOADS, lambda: left() > LOAD_S)


def _fitting(device: torch.device) -> list[str]:
    free, _ = torch.cuda.mem_get_info(device)
    return fitting(models.entries(), free)


def _labelled(rows: Iterable[Row], device: str) -> Iterator[Row]:
    """Rows with the device, the versions and the date."""
    labels = {
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    return (row | labels for row in rows)


def _written(rows: Iterable[Row], file: TextIO | None) -> Iterator[Row]:
    """The same rows, each written when it is measured, so that an interrupted run keeps them."""
    for row in rows:
        if file is not None:
            file.write(json.dumps(row) + "\n")
            file.flush()
        print(progress(row), file=sys.stderr, flush=True)
        yield row


def progress(row: Row) -> str:
    """One line that says what a row measured."""
    named = ("kind", "model", "phase", "batch", "context", "kernel", "shapes", "implementation")
    figures = ("matmul_tflops", "copy_tb_s", "eager_s", "graph_s", "seconds", "peak_above")
    words = [str(row[key]) for key in named if key in row]
    values = [f"{key} {row[key]:.4g}" for key in figures if key in row]
    failures = [row[key] for key in ("error", "graph_error") if key in row]
    return " ".join((*words, *values, *failures))


if __name__ == "__main__":
    main()
