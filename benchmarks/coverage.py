"""What traces of everything that transformers can load: one row for each model type.

    python benchmarks/coverage.py full      # default configurations, full size, on meta
    python benchmarks/coverage.py reduced   # fewer layers, held against a real forward on the CPU

A survey that was stopped goes on where it stood; `--again` starts over.
"""

import argparse
import importlib
import json
import multiprocessing
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

BATCH = 2
PRELOADED = (
    "llmsim_magic.capture.run",
    "tests.real",
    "tests.reduced",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "torch._meta_registrations",
    "torch._decomp",
    "torch._refs",
)
CONTEXT = 128
LIMIT_S = 120.0
REDUCED_CONTEXT = 16


def survey_full(model_type: str) -> dict[str, Any]:
    """Build the default configuration of a type on `meta` and trace it in both phases."""
    import transformers

    import llmsim_magic as llmsim

    row: dict[str, Any] = {"prefill": "", "decode": "", "class": "", "operators": None}
    try:
        config = transformers.CONFIG_MAPPING[model_type]()
    except Exception as error:
        return row | {"prefill": f"no default configuration: {type(error).__name__}: {error}"}
    for phase in ("prefill", "decode"):
        try:
            report = llmsim.trace(config, phase=phase, batch=BATCH)
        except llmsim.LlmsimError as error:
            row[phase] = f"{type(error).__name__}: {error}"
            if phase == "prefill":
                return row
        except Exception as error:
            row[phase] = f"DEFECT {type(error).__name__}: {error}"
        else:
            row[phase] = "yes"
            row["class"] = report.trace.model.class_name
            if phase == "prefill":
                row["operators"] = len(report.trace.operators)
                row["notes"] = list(report.trace.notes)
    return row


def survey_reduced(model_type: str) -> dict[str, Any]:
    """Trace a small configuration of a type and hold every module against a real forward."""
    import llmsim_magic as llmsim
    from llmsim_magic.records.workload import Workload
    from tests.real import beside, differences
    from tests.reduced import candidates

    row: dict[str, Any] = {"prefill": "", "decode": "", "class": "", "operators": None}
    errors: list[Exception] = []
    real = seen = config = None
    prefill = Workload("prefill", BATCH, REDUCED_CONTEXT)
    try:
        configs = candidates(model_type)
        for number, config in enumerate(configs):
            try:
                real = beside(config, limit=400_000_000)
                seen = real.prefill(prefill)
                row["candidate"] = number
                break
            except Exception as error:
                errors.append(error)
    except Exception as error:
        return row | {"prefill": f"no default configuration: {type(error).__name__}: {error}"}
    if seen is None:
        said = "; ".join(dict.fromkeys(f"{type(e).__name__}: {e}"[:200] for e in errors))
        return row | {"prefill": f"no real forward: {said}"}
    row["class"] = type(real.model).__name__
    for phase in ("prefill", "decode"):
        try:
            if phase == "decode":
                real = beside(config)  # a prefill may leave traces in the model itself
                seen = real.decode(Workload("decode", BATCH, REDUCED_CONTEXT))
                if seen is None:
                    row[phase] = "none"
                    continue
        except Exception as error:
            row[phase] = f"no real forward: {type(error).__name__}: {error}"
            continue
        try:
            report = llmsim.trace(
                config, phase=phase, batch=BATCH, context=REDUCED_CONTEXT, dtype="float32"
            )
        except Exception as error:
            row[phase] = f"{type(error).__name__}: {error}"
            continue
        unlike = differences(real.model, seen, report.modules)
        row[phase] = "yes" if not unlike else f"differs in {len(unlike)} modules"
        if unlike:
            path, pair = next(iter(unlike.items()))
            row[f"{phase}_first"] = f"{path}: {pair}"[:600]
        row[f"{phase}_notes"] = list(report.trace.notes)
        row["operators"] = len(report.trace.operators)
    return row


@dataclass
class Running:
    """A type surveyed in a process of its own."""

    model_type: str
    process: Any
    answer: Any
    until: float


def rows_of(types: Sequence[str], size: str, workers: int) -> Iterator[dict[str, Any]]:
    """One row for each type, each made in a forked process within `LIMIT_S`."""
    waiting, running = list(types), list[Running]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(start(waiting.pop(0), size))
        wait([each.answer for each in running], timeout=1.0)
        for each in list(running):
            late = time.monotonic() > each.until
            if late or each.answer.poll():
                running.remove(each)
                yield {"model_type": each.model_type, "size": size, **finish(each, late=late)}


def start(model_type: str, size: str) -> Running:
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)

    def work() -> None:
        warnings.filterwarnings("ignore")
        started = time.perf_counter()
        row = (survey_full if size == "full" else survey_reduced)(model_type)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        writer.send(row)

    process = fork.Process(target=work)
    process.start()
    writer.close()
    return Running(model_type, process, reader, time.monotonic() + LIMIT_S)


def finish(running: Running, *, late: bool) -> dict[str, Any]:
    try:
        row = {"prefill": f"over {LIMIT_S:.0f} s"} if late else running.answer.recv()
    except EOFError:
        row = {"prefill": "the process died"}
    running.process.kill()
    running.process.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size")
    parser.add_argument("--types", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for module in PRELOADED:
        importlib.import_module(module)
    types = arguments.types.split(",") if arguments.types else list(transformers.CONFIG_MAPPING)
    done = set()
    if arguments.out.exists():
        done = {json.loads(line)["model_type"] for line in arguments.out.open()}
    todo = [t for t in types if t not in done]
    with arguments.out.open("a") as out:
        for row in tqdm(rows_of(todo, arguments.size, arguments.workers), total=len(todo)):
            out.write(json.dumps(row) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
