"""Run many workloads, here or on an executor, and keep all that is done."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from llmsim_magic.records.errors import Cancelled, CannotTrace, LlmsimError, NoDecode
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.models import recipes
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress

PATIENCE_S = 0.2  # between looks at whether a sweep on an executor is cancelled


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a workload: its trace, or why there is none."""

    workload: Workload
    trace: Trace | None = None
    reason: str = ""
    exists: bool = True


def outcome(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled = never_cancelled
) -> Outcome:
    """Trace one workload in whatever process this is; a mistake is an outcome too."""
    try:
        return Outcome(workload, recipes.trace_workload(recipe, workload, replay, cancelled))
    except NoDecode as error:
        return Outcome(workload, reason=str(error), exists=False)
    except LlmsimError as error:
        return Outcome(workload, reason=str(error))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """In the order asked for; `undone` counts those that a cancel or an interrupt left out."""

    found: tuple[Outcome, ...]
    undone: int

    @property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(each.trace for each in self.found if each.trace is not None)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(each for each in self.found if each.trace is None and each.exists)

    @property
    def missing(self) -> tuple[str, ...]:
        """Why a phase does not exist for the model, once each."""
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
    """Trace every workload, and keep what is done when cancelled or interrupted.

    Raises `LlmsimError` where none could be traced or was cancelled before any was, and
    KeyboardInterrupt likewise.
    """
    # A decode step goes on from the prefill of as many tokens, where that was the pass before it.
    queue = sorted(workloads, key=lambda workload: (workload.batch, workload.context))
    running = (
        _here(recipe, queue, replay, cancelled)
        if executor is None
        else _on(executor, recipe, queue, replay, cancelled)
    )
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


def _here(
    recipe: ModelRecipe, workloads: Iterable[Workload], replay: bool, cancelled: IsCancelled
) -> Generator[Outcome, None, None]:
    """One after the other; a phase that does not exist is tried once."""
    missing: dict[str, str] = {}
    for workload in workloads:
        if workload.phase in missing:
            yield Outcome(workload, reason=missing[workload.phase], exists=False)
            continue
        found = outcome(recipe, workload, replay, cancelled)
        if not found.exists:
            missing[workload.phase] = found.reason
        yield found


def _on(
    executor: Executor,
    recipe: ModelRecipe,
    workloads: Sequence[Workload],
    replay: bool,
    cancelled: IsCancelled,
) -> Generator[Outcome, None, None]:
    """As they are done; what a lost worker or a broken executor leaves undone is done here."""
    running: dict[Future[Outcome], Workload] = {}
    try:
        for workload in workloads:
            try:
                running[executor.submit(outcome, recipe, workload, replay)] = workload
            except Exception:  # whatever an executor raises, it does not take the workload
                break
        yield from _here(recipe, workloads[len(running) :], replay, cancelled)
        pending = set(running)
        while pending:
            done, pending = wait(pending, PATIENCE_S, FIRST_COMPLETED)
            for future in done:
                lost = future.cancelled() or future.exception() is not None
                workload = running[future]
                yield outcome(recipe, workload, replay, cancelled) if lost else future.result()
            if cancelled():
                return
    finally:
        for future in running:
            future.cancel()
