"""Runs the fuzz tests with thousands of cases other than those of the test suite.

    python -m benchmarks.fuzz [--cases 20000] [--only configs] [--seed 0] [--write]

Every fuzzer of `tests/fuzz` has its share. A case that failed is printed;
`--write` puts the table into `fuzz.md` beside this file.
"""

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.fuzz_cases import Outcomes, run_cases
from benchmarks.timing import Process, say

TESTS = Path(__file__).parents[1] / "tests" / "fuzz"
SHARES = {"test_configs": 5, "test_modules": 2}  # where others have one
ROUND = 500  # cases that one process tries


def fuzzers() -> Iterator[tuple[str, str]]:
    """The module and the name of every test that hypothesis hands cases to."""
    for file in sorted(TESTS.glob("test_*.py")):
        module = f"tests.fuzz.{file.stem}"
        for name, value in vars(importlib.import_module(module)).items():
            if name.startswith("test_") and getattr(value, "is_hypothesis_test", False):
                yield module, name


def shared_out(found: list[tuple[str, str]], cases: int) -> dict[tuple[str, str], int]:
    """How many cases each fuzzer has, in all as many as are asked for."""
    shares = [SHARES.get(module.rpartition(".")[2], 1) for module, _ in found]
    ends = [round(cases * sum(shares[:place]) / sum(shares)) for place in range(len(shares) + 1)]
    return {one: ends[place + 1] - ends[place] for place, one in enumerate(found)}


def measured(module: str, name: str, cases: int, seed: int) -> Outcomes:
    """The cases in rounds, each of a process of its own, which may die of them."""
    ends = Outcomes()
    while ends.cases < cases:
        asked = min(ROUND, cases - ends.cases)
        try:
            with Process() as fresh:
                found = fresh(run_cases, module, name, asked, seed + ends.cases)
        except RuntimeError as error:
            failure = f"a round of {name}, seed {seed + ends.cases}: {error}"
            found = Outcomes(asked, failed=[failure])
        ends.add(found)
        say("\n".join((f"{name}: {ends.cases} of {cases}", *found.failed)))
        if not found.cases:
            break  # hypothesis has no more
    return ends


def page(found: dict[tuple[str, str], Outcomes], seed: int) -> str:
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "hypothesis")
    )
    whole = Outcomes()
    for ends in found.values():
        whole.add(ends)
    named = {name.removeprefix("test_").replace("_", " "): e for (_, name), e in found.items()}
    lines = [
        "| fuzzer | cases | reports | refused in a line | failed | slowest case | most memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {name} | {each.cases:,} | {each.reports:,} | {each.lines:,} | {len(each.failed):,} "
            f"| {each.slowest:.1f} s | {each.peak_gb:.2f} GB |"
            for name, each in (named | {"in all": whole}).items()
        ),
    ]
    return "\n".join(
        (
            "# Bad input",
            "",
            f"`python -m benchmarks.fuzz --seed {seed} --write`: what became of cases that "
            "hypothesis made. A report is right as far as `tests/helpers/outcomes.py` can tell, "
            "and has as many parameters as transformers itself makes of the config; a line is one "
            "line. "
            "Seconds are of work, imports within them; memory is what the process ever had.",
            "",
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"{versions}.",
            "",
            *lines,
        )
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--cases", type=int, default=20_000)
    arguments.add_argument("--only", default="", help="fuzzers whose name holds this")
    arguments.add_argument("--seed", type=int, default=0, help="other cases for another one")
    arguments.add_argument("--write", action="store_true", help="into fuzz.md beside this file")
    given = arguments.parse_args()
    chosen = [one for one in fuzzers() if given.only in ".".join(one)]
    shared = shared_out(chosen, given.cases)
    found = {one: measured(*one, cases, given.seed) for one, cases in shared.items()}
    text = page(found, given.seed)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text + "\n", "utf-8")
    print(text)
    failed = [case for ends in found.values() for case in ends.failed]
    sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
