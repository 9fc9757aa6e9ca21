"""Runs the cases of a fuzz test in one process and counts their outcomes."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

from benchmarks.timing import peak_gb
from tests.helpers import outcomes


@dataclass
class Outcomes:
    """Counts of cases; `failed` describes each failure, `slowest` is in seconds of CPU time."""

    cases: int = 0
    reports: int = 0
    lines: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: str = ""
    peak_gb: float = 0.0

    def add(self, other: "Outcomes") -> None:
        self.cases += other.cases
        self.reports += other.reports
        self.lines += other.lines
        self.failed += other.failed
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.peak_gb = max(self.peak_gb, other.peak_gb)


def run_cases(module: str, name: str, cases: int, start: int) -> Outcomes:
    """Run `cases` cases of a fuzz test from a seed; a failing case does not end the run."""
    counts = Outcomes()
    test = getattr(importlib.import_module(module), name)
    test.hypothesis.inner_test = _recording(test.hypothesis.inner_test, counts)
    limits = settings(
        max_examples=cases,
        derandomize=False,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    seed(start)(limits(test))()
    counts.reports, counts.lines = outcomes.counts["report"], outcomes.counts["line"]
    counts.peak_gb = peak_gb()
    return counts


def _recording(run: Callable[..., None], counts: Outcomes) -> Callable[..., None]:
    def recorded(*args: Any, **keywords: Any) -> None:
        case = " ".join(map(repr, (*args, *keywords.values())))
        start = time.process_time()
        try:
            run(*args, **keywords)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts.failed.append(f"{case[:2000]}\n    {type(error).__name__}: {str(error)[:1000]}")
        counts.cases += 1
        seconds = time.process_time() - start
        if seconds > counts.slowest:
            counts.slowest, counts.slowest_case = seconds, case[:300]

    return recorded
