"""What becomes of bad input, by the thousand: other cases than the tests', at each run.

    python -m benchmarks.fuzz [--cases 20000] [--only lines] [--write]

Every fuzzer of `tests/test_fuzz_*.py` has its share. `--write` puts the table into `fuzz.md`
beside this file, where none failed; a case that failed is printed.
"""

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from benchmarks.timing import Process, peak_gb, say

TESTS = Path(__file__).parents[1] / "tests"
SHARES = {"test_fuzz_folders": 0.1}  # of what others have: its cases are few and large
ROUND = 500  # cases that one process tries


@dataclass
class Ends:
    """What cases ended in. `failed` tells each that was not right; `slowest` is in seconds."""

    cases: int = 0
    reports: int = 0
    lines: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: str = ""
    peak_gb: float = 0.0

    def add(self, other: "Ends") -> None:
        self.cases += other.cases
        self.reports += other.reports
        self.lines += other.lines
        self.failed += other.failed
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.peak_gb = max(self.peak_gb, other.peak_gb)


def fuzzers() -> Iterator[tuple[str, str]]:
    """The module and the name of every test that hypothesis hands cases to."""
    for file in sorted(TESTS.glob("test_fuzz_*.py")):
        module = f"tests.{file.stem}"
        for name, value in vars(importlib.import_module(module)).items():
            if name.startswith("test_") and getattr(value, "is_hypothesis_test", False):
                yield module, name


def tried(module: str, name: str, cases: int) -> Ends:
    """That many cases of a fuzzer, one after the other; none ends the run."""
    from tests import judge

    ends = Ends()
    test = getattr(importlib.import_module(module), name)
    test.hypothesis.inner_test = _noting(test.hypothesis.inner_test, ends)
    settings(
        max_examples=cases,
        derandomize=False,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(test)()
    ends.reports, ends.lines = judge.ends["report"], judge.ends["line"]
    ends.peak_gb = peak_gb()
    return ends


def _noting(ask: Callable[..., None], ends: Ends) -> Callable[..., None]:
    def noted(*args: Any, **keywords: Any) -> None:
        case = " ".join(map(repr, (*args, *keywords.values())))
        start = time.perf_counter()
        try:
            ask(*args, **keywords)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ends.failed.append(f"{case[:2000]}\n    {type(error).__name__}: {str(error)[:1000]}")
        ends.cases += 1
        seconds = time.perf_counter() - start
        if seconds > ends.slowest:
            ends.slowest, ends.slowest_case = seconds, case[:300]

    return noted
