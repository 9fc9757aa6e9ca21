"""Checks the outcome of a fuzz case: a consistent report, or a one-line error."""

import faulthandler
import math
import re
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.hardware.size import Sizing
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.sweeps.sweep import Sweep

LIMIT_S = 10.0  # of work
WAIT_S = 60.0  # of a machine that others use as well
STUCK_S = 120  # in C code, where no signal is heard
MEMORY = 2 << 30  # bytes more than before
LONGEST_LINE = 600
counts: Counter[str] = Counter()  # cases by outcome: "report" or "line"

Answer = Report | Sweep | Sizing | None


class TimedOut(BaseException):
    """The case took too long. No code may take it for an error of its own."""


def check_outcome(ask: Callable[[], Answer]) -> Answer | str:
    """The report, which is right, or the line that it was refused with. No report: only text.

    Fails on any other end: another exception, a line too long or broken, a report that contradicts
    itself, more than `LIMIT_S` seconds of work, `MEMORY` bytes more than the process ever had.
    """
    peak = _peak()
    with resource_limits():
        try:
            answer: Answer | str = ask()
        except LlmsimError as error:
            answer = _one_line(str(error))
        if isinstance(answer, str):
            counts["line"] += 1
        else:
            check(answer)
            counts["report"] += 1
    grown = _peak() - peak
    assert grown < MEMORY, f"{grown >> 20} MiB"
    return answer


def check(answer: Answer) -> None:
    """A right report says the same in each of its views, and shows itself."""
    if answer is None:
        return
    if isinstance(answer, Sweep):
        for trace in answer.traces:
            check_trace(trace)
    elif isinstance(answer, Report):
        check_trace(answer.trace)
        _check_tables(answer)
    html = answer._repr_mimebundle_()["text/html"]
    assert html
    assert repr(answer)


def check_trace(trace: Trace) -> None:
    assert Trace.from_json(trace.to_json()) == trace
    count = len(trace.tensors)
    for kernel in trace.kernels:
        assert all(0 <= index < count for index in (*kernel.inputs, *kernel.outputs))
        assert kernel.flops is None or kernel.flops >= 0
    for tensor in trace.tensors:
        assert all(type(size) is int and size >= 0 for size in tensor.shape)
    assert len(trace.steps) == len(trace.operators) == len(trace.paths)


def _check_tables(report: Report) -> None:
    ops, summary = report.ops, report.summary["value"]
    assert len(ops) == summary["operators"]
    for quantity in ("flops", "elementwise_ops", "bytes_read", "bytes_written"):
        known, total = ops[quantity].sum(), summary[quantity]
        # Of an operator with a kernel that nobody has a formula for, the others count in the total.
        assert known <= total if ops[quantity].isna().any() else known == total, quantity
        assert not (ops[quantity] < 0).any(), quantity
    parts = ops["bytes_weights"] + ops["bytes_activations"] + ops["bytes_cache"]
    assert (parts == ops["bytes_read"] + ops["bytes_written"]).all()
    for order, needs in enumerate(ops["depends_on"]):
        assert all(0 <= other < order for other in needs), "an operator waits for a later one"
    once = {p.name: p for p in report.trace.parameters if p.tied_to is None and not p.is_buffer}
    assert summary["parameters"] == sum(p.numel for p in once.values())
    assert summary["parameter_bytes"] == sum(p.nbytes for p in once.values())
    intensity = ops["arithmetic_intensity"].dropna()
    assert all(map(math.isfinite, intensity))


def _one_line(text: str) -> str:
    assert text.strip(), "an empty line"
    assert len(text) <= LONGEST_LINE, text
    assert text.isprintable(), f"more than one line, or marks that cannot be seen: {text!r}"
    assert "Traceback" not in text
    assert not re.search(r"MemoryError|can't allocate memory", text), text
    return text


@contextmanager
def resource_limits() -> Iterator[None]:
    """Raise `TimedOut` after the limit of time, and `MemoryError` at that of memory.

    The process ends where it does not listen.
    """

    def late(*_: Any) -> None:
        raise TimedOut

    most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + 2 * MEMORY, most[1]))
    before = signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_REAL, WAIT_S)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, most)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _data() -> int:
    """Bytes that the process may write to, whether it does or not."""
    pages = Path("/proc/self/statm").read_text().split()[5]
    return int(pages) * resource.getpagesize()
