"""Evaluate the workloads of a sweep by formulas, where that needs fewer passes than tracing."""

from collections.abc import Sequence
from functools import partial

from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import TRAIN, IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress
from llmsim_magic.simulate.models.workloads import (
    is_traced,
    keep_symbolic_trace,
    known_traces,
    question_of,
    symbolic_trace,
    trace_workload,
)
from llmsim_magic.simulate.sweeps.derivation import (
    FEWEST_POINTS,
    derive,
    first_points,
    limits_of,
)
from llmsim_magic.simulate.sweeps.trace_sequence import Evaluable


class SymbolicRecords:
    """The symbolic traces that answer the workloads of one sweep.

    They are derived, once in a session, for each phase of which the sweep has more workloads than
    a derivation traces.

    Args:
        recipe: the model.
        replay: whether layers are replayed.
        workloads: the workloads of the sweep.
        progress: called with a message before a derivation.
    """

    def __init__(
        self, recipe: ModelRecipe, replay: bool, workloads: Sequence[Workload], progress: Progress
    ) -> None:
        self._recipe, self._replay, self._progress = recipe, replay, progress
        self._wanted: dict[str, frozenset[Point]] = {}
        for phase in dict.fromkeys(each.phase for each in workloads if each.phase != TRAIN):
            self._want(phase, [workload for workload in workloads if workload.phase == phase])

    def _want(self, phase: str, workloads: Sequence[Workload]) -> None:
        """Have the formulas of a phase derived if that pays."""
        if len(workloads) <= FEWEST_POINTS or self._symbolic(workloads[0]) is not None:
            return
        new = sum(not self._is_traced(workload) for workload in workloads)
        if new > FEWEST_POINTS:
            points = first_points(phase, limits_of(build_workload_model(self._recipe)))
            if new > len(points):
                self._wanted[phase] = points

    def is_needed(self, workload: Workload) -> bool:
        """Whether a derivation will trace this workload anyway."""
        return (workload.batch, workload.context) in self._wanted.get(workload.phase, ())

    def evaluable(self, workload: Workload, cancelled: IsCancelled) -> Evaluable | None:
        """The formulas for a workload; None if it has to be traced, or is known.

        The first workload that no derivation needs starts the derivations.
        """
        if self.is_needed(workload):
            return None
        self._derive(cancelled)
        symbolic = self._symbolic(workload)
        region = None if symbolic is None else symbolic.region(workload)
        if region is None or not region.fits(workload.batch, workload.context):
            return None
        return Evaluable(region, workload)

    def confirm(self, trace: Trace) -> None:
        """Compare a pass with the formulas, if they were not checked at its context."""
        symbolic = self._symbolic(trace.workload)
        if symbolic is not None and trace.workload.context in symbolic.unchecked:
            confirmed = symbolic.confirmed(trace)
            if confirmed is not symbolic:
                self._keep(trace.workload, confirmed)

    def _derive(self, cancelled: IsCancelled) -> None:
        phases = tuple(self._wanted)
        if not phases:
            return
        self._progress(f"deriving the formulas of {' and '.join(phases)}")
        _derive(self._recipe, phases, self._replay, cancelled)
        self._wanted.clear()

    def _symbolic(self, workload: Workload) -> SymbolicTrace | None:
        return symbolic_trace(self._recipe, question_of(workload, self._replay))

    def _keep(self, workload: Workload, found: SymbolicTrace) -> None:
        keep_symbolic_trace(self._recipe, question_of(workload, self._replay), found)

    def _is_traced(self, workload: Workload) -> bool:
        return is_traced(self._recipe, question_of(workload, self._replay))


def evaluate_or_trace(
    recipe: ModelRecipe,
    workload: Workload,
    replay: bool,
    cancelled: IsCancelled = never_cancelled,
) -> Trace:
    """The trace of one workload of many, as of a search or of a slider.

    Once a session has as many traces of a phase as its formulas take, these are derived.

    Args:
        recipe: the model.
        workload: phase, batch and context.
        replay: run identical layers only once.
        cancelled: polled during a pass.

    Raises:
        KeyboardInterrupt: the pass was cancelled.
        LlmsimError: the workload cannot be traced.
    """
    question = question_of(workload, replay)
    known = known_traces(recipe, question)
    if (
        workload.phase != TRAIN
        and known > FEWEST_POINTS
        and symbolic_trace(recipe, question) is None
        and not is_traced(recipe, question)
    ):
        points = first_points(workload.phase, limits_of(build_workload_model(recipe)))
        if known >= len(points):
            _derive(recipe, (workload.phase,), replay, cancelled)
    return trace_workload(recipe, workload, replay, cancelled)


def _derive(
    recipe: ModelRecipe, phases: Sequence[str], replay: bool, cancelled: IsCancelled
) -> None:
    """Derive the symbolic traces of some phases, and keep those that are new."""
    trace = partial(trace_workload, recipe, replay=replay, cancelled=cancelled)
    found = derive(phases, limits_of(build_workload_model(recipe)), trace)
    for phase, each in found.items():
        question = question_of(Workload(phase, 1, 1), replay)
        if symbolic_trace(recipe, question) is None:
            keep_symbolic_trace(recipe, question, each)
