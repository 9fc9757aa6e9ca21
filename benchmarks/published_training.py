"""Published training runs against ours: memory and tokens per second, with what differs.

    python -m benchmarks.published_training [FILE]

FILE has the columns of `published_training.csv`. A run's set-up is as its source states it;
`differs` says what the run has that ours has not, or what the source leaves open. `memory_kind` is
`allocated` or `reserved`, in GiB for each device.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.step_allocations import step_allocations
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.trace.trace import Trace

RUNS = Path(__file__).with_name("published_training.csv")
NEAR = 0.1  # of the published figure


def main() -> None:
    """Print a table of all runs, and how many are near."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RUNS)
    with parser.parse_args().file.open(encoding="utf-8") as file:
        lines = [line for run in csv.DictReader(file) for line in _compared(run)]
    near = sum(abs(found / published - 1) <= NEAR for _, _, found, published, _ in lines)
    print("| run | figure | ours | published | off by | what differs |")
    print("|---|---|---:|---:|---:|---|")
    for run, figure, found, published, differs in lines:
        off = found / published - 1
        print(f"| {run} | {figure} | {found:,.1f} | {published:,.1f} | {off:+.0%} | {differs} |")
    print(f"\n{near} of {len(lines)} figures are within {NEAR:.0%}.")


def _compared(run: Mapping[str, str]) -> Iterator[tuple[str, str, float, float, str]]:
    """The name of a run, and each of its figures: what it is, ours, the published one."""
    trace = _trace(run)
    ways = {
        f"dp {run['dp']} zero {run['zero']}": run["dp"] != "1",
        run["precision"]: True,
        "checkpointing": bool(run["checkpointing"]),
        f"lora {run['lora']}": bool(run["lora"]),
    }
    name = ", ".join(
        [
            f"{run['model']} on {run['device']}",
            f"{run['batch']} × {run['context']}",
            *(way for way, is_so in ways.items() if is_so),
        ]
    )
    steady = step_allocations(trace).steady
    is_reserved = run["memory_kind"] == "reserved"
    found = steady.reserved if is_reserved else steady.peak.alive.total
    differs = run["differs"]
    yield name, f"{run['memory_kind']} GiB", found / 2**30, float(run["memory_gib"]), differs
    if run["tokens_per_s"]:
        seconds = transformers_time(trace, accelerators.find(run["device"]), "eager").seconds
        tokens = trace.workload.batch * trace.workload.context
        yield name, "tokens/s", tokens / seconds, float(run["tokens_per_s"]), differs


def _trace(run: Mapping[str, str]) -> Trace:
    report = llmsim.trace(
        run["model"],
        phase="train",
        batch=int(run["batch"]),
        context=int(run["context"]),
        optimizer=run["optimizer"],
        precision=run["precision"],
        checkpointing=bool(run["checkpointing"]),
        lora=run["lora"] or None,
        dp=int(run["dp"]),
        zero=int(run["zero"]),
    )
    return report.trace


if __name__ == "__main__":
    main()
