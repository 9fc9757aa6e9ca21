"""Trace many workloads, in this process or on an executor; keep results when cancelled."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from llmsim_magic.records.errors import (
    Cancelled,
    CannotTrace,
    LlmsimError,
    NoDecode,
    RecursiveTrace,
)
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress
from llmsim_magic.simulate.sweeps.symbolic_records import SymbolicRecords, evaluate_or_trace
from llmsim_magic.simulate.sweeps.trace_sequence import Evaluable, TraceSequence

POLL_INTERVAL_S = 0.2  # at which a sweep on an executor checks for cancellation


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one workload: its trace, or formulas for it, or why there is neither.

    `exists` is False if the model has no such phase.
    """

    workload: Workload
    trace: Trace | Evaluable | None = None
    reason: str = ""
    exists: bool = True


def outcome(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled = never_cancelled
) -> Outcome:
    """Trace one workload in the current process; an error of the model becomes an outcome.

    Raises:
        RecursiveTrace: this thread is tracing.
    """
    try:
        return Outcome(workload, evaluate_or_trace(recipe, workload, replay, cancelled))
    except RecursiveTrace:
        raise
    except NoDecode as error:
        return Outcome(workload, reason=str(error), exists=False)
    except LlmsimError as error:
        return Outcome(workload, reason=str(error))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes in the requested order; `undone` counts workloads skipped by cancellation."""

    found: tuple[Outcome, ...]
    undone: int

    @property
    def traces(self) -> TraceSequence:
        """The traces of the workloads that succeeded."""
        return TraceSequence([each.trace for each in self.found if each.trace is not None])

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The workloads that the model has but that could not be traced."""
        return tuple(each for each in self.found if each.trace is None and each.exists)

    @property
    def missing(self) -> tuple[str, ...]:
        """The distinct reasons why a phase does not exist for the model."""
        return tuple(dict.fromkeys(each.reason for each in self.found if not each.exists))


def run_all(
    recipe: ModelRecipe,
    workloads: Sequence[Workload],
    *,
    replay: bool,
    executor: Executor | None,
    cancelled: IsCancelled,
    progress: Progress,
) -> Outcomes:
    """Trace every workload; keep the finished ones when cancelled or interrupted.

    Args:
        recipe: the model.
        workloads: the workloads, in the order of the result.
        replay: run identical layers only once.
        executor: where to trace; None traces in this process.
        cancelled: polled between workloads and inside a pass.
        progress: called with a message before each workload.

    Raises:
        CannotTrace: every workload failed.
        NoDecode: the model has none of the phases.
        Cancelled: cancelled before the first workload finished.
        KeyboardInterrupt: interrupted before the first workload finished.
    """
    # Sorted so that a decode step follows the prefill of the same context and reuses its cache.
    queue = sorted(workloads, key=lambda workload: (workload.batch, workload.context))
    if executor is None:
        records = SymbolicRecords(recipe, replay, workloads, progress)
        queue.sort(key=lambda workload: not records.is_needed(workload))
        running = _run_locally(recipe, queue, replay, cancelled, records)
    else:
        running = _run_on_executor(executor, recipe, queue, replay, cancelled)
    found: dict[Workload, Outcome] = {}
    try:
        for number, workload in enumerate(queue, 1):
            if cancelled():
                break
            place = f"workload {number} of {len(workloads)}: " if len(workloads) > 1 else "tracing "
            progress(f"{place}{workload}")
            each = next(running, None)
            if each is None:
                break
            found[each.workload] = each
    except KeyboardInterrupt:
        if not found and not cancelled():
            raise
    finally:
        running.close()
    ordered = tuple(found[workload] for workload in workloads if workload in found)
    outcomes = Outcomes(ordered, len(workloads) - len(ordered))
    if not ordered:
        raise Cancelled("sweep: cancelled before any workload was traced")
    if not outcomes.traces:
        failed = outcomes.failed
        raise CannotTrace(failed[0].reason) if failed else NoDecode(ordered[0].reason)
    return outcomes


def _run_locally(
    recipe: ModelRecipe,
    workloads: Iterable[Workload],
    replay: bool,
    cancelled: IsCancelled,
    records: SymbolicRecords | None = None,
) -> Generator[Outcome, None, None]:
    """Trace or evaluate each workload; a phase that does not exist is tried only once."""
    missing: dict[str, str] = {}
    for workload in workloads:
        if workload.phase in missing:
            yield Outcome(workload, reason=missing[workload.phase], exists=False)
            continue
        symbolic = records.evaluable(workload, cancelled) if records is not None else None
        if symbolic is not None:
            yield Outcome(workload, symbolic)
            continue
        found = outcome(recipe, workload, replay, cancelled)
        if not found.exists:
            missing[workload.phase] = found.reason
        if records is not None and isinstance(found.trace, Trace):
            records.confirm(found.trace)
        yield found


def _run_on_executor(
    executor: Executor,
    recipe: ModelRecipe,
    workloads: Sequence[Workload],
    replay: bool,
    cancelled: IsCancelled,
) -> Generator[Outcome, None, None]:
    """Yield outcomes as they finish; workloads lost by a worker are traced in this process."""
    running: dict[Future[Outcome], Workload] = {}
    try:
        for workload in workloads:
            try:
                running[executor.submit(outcome, recipe, workload, replay)] = workload
            except Exception:  # an executor may raise anything; the rest is traced locally
                break
        rest = workloads[len(running) :]
        yield from _run_locally(recipe, rest, replay, cancelled)
        pending = set(running)
        while pending:
            done, pending = wait(pending, POLL_INTERVAL_S, FIRST_COMPLETED)
            for future in done:
                lost = future.cancelled() or future.exception() is not None
                workload = running[future]
                yield outcome(recipe, workload, replay, cancelled) if lost else future.result()
            if cancelled():
                return
    finally:
        for future in running:
            future.cancel()
