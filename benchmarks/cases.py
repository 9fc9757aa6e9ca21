"""Cases of a fuzzer, one after the other, and what they ended in."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

from benchmarks.timing import peak_gb
from tests.helpers import outcomes


@dataclass
class Ends:
    """What cases ended in: `failed` tells each that was not right, `slowest` is seconds of work."""

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


def tried(module: str, name: str, cases: int, start: int) -> Ends:
    """That many cases of a fuzzer, one after the other, from a seed; none ends the run."""
    ends = Ends()
    test = getattr(importlib.import_module(module), name)
    test.hypothesis.inner_test = _noting(test.hypothesis.inner_test, ends)
    limits = settings(
        max_examples=cases,
        derandomize=False,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    seed(start)(limits(test))()
    ends.reports, ends.lines = outcomes.ends["report"], outcomes.ends["line"]
    ends.peak_gb = peak_gb()
    return ends


def _noting(ask: Callable[..., None], ends: Ends) -> Callable[..., None]:
    def noted(*args: Any, **keywords: Any) -> None:
        case = " ".join(map(repr, (*args, *keywords.values())))
        start = time.process_time()
        try:
            ask(*args, **keywords)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ends.failed.append(f"{case[:2000]}\n    {type(error).__name__}: {str(error)[:1000]}")
        ends.cases += 1
        seconds = time.process_time() - start
        if seconds > ends.slowest:
            ends.slowest, ends.slowest_case = seconds, case[:300]

    return noted
