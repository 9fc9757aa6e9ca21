"""Times contenders in rounds, each contender in a separate process.

Some contenders patch torch permanently, so they must not share a process. All are warmed up
before the first round, and a round spreads the noise of a shared machine over all of them.
"""

import gc
import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import util
from typing import Any

from llmsim_magic.simulate.cache.session_cache import forget_traces

os.environ["LLMSIM_CACHE"] = "off"  # records on disk would answer instead of what is timed
Run = Callable[[], object]
_prepared_runs: list[Run] = []  # in a contender's process: what is timed there


@dataclass
class Contender:
    """A tool to time: `prepare` returns the function to time, `needs` is a package it requires."""

    name: str
    how: str
    prepare: Callable[[], Run]
    needs: str = ""
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


def timed(run: Run) -> float:
    """Seconds of one run, with an empty trace cache."""
    forget_traces()
    gc.collect()
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result
    return seconds


def warm_up(prepare: Callable[[], Run]) -> None:
    _prepared_runs.append(prepare())
    _prepared_runs[0]()


def again() -> float:
    return timed(_prepared_runs[0])


class Process:
    """A new interpreter that executes calls.

    It does not use `multiprocessing`, because torchlens refuses to run under it.
    """

    def __enter__(self) -> "Process":
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.timing import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._child.communicate()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function there; an exception becomes a `RuntimeError` with one line."""
        assert self._child.stdin
        assert self._child.stdout
        pickle.dump((function, args), self._child.stdin)
        self._child.stdin.flush()
        try:
            problem, answer = pickle.load(self._child.stdout)
        except EOFError:
            problem = "its process died"
        if problem:
            raise RuntimeError(problem)
        return answer


def serve() -> None:
    """Execute calls until stdin ends; redirects what they print to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = "", function(*args)
        except Exception as error:
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}", None
        pickle.dump(answer, answers)
        answers.flush()


def race(contenders: Iterable[Contender], runs: int) -> dict[str, Contender]:
    """Time every contender that can run, in rounds."""
    found = {contender.name: contender for contender in contenders}
    with ExitStack() as stack:
        ready = {}
        for name, contender in found.items():
            say(f"preparing {name}")
            if contender.needs and util.find_spec(contender.needs) is None:
                contender.problem = "not installed"
                continue
            process = stack.enter_context(Process())
            try:
                process(warm_up, contender.prepare)
                ready[name] = process
            except RuntimeError as error:
                contender.problem = str(error)
        for turn in range(runs):
            for name, process in ready.items():
                found[name].seconds.append(process(again))
                say(f"round {turn + 1}: {name}: {found[name].seconds[-1]:.3f} s")
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
