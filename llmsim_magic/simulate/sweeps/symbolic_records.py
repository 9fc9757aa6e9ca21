"""Evaluate the workloads of a sweep by formulas, where that needs fewer passes than tracing."""

from collections.abc import Sequence
from functools import partial

from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload
from llmsim_magic.simulate.models import recipes, session_cache, symbolic_cache
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress
from llmsim_magic.simulate.models.symbolic_cache import Kind
from llmsim_magic.simulate.sweeps.derivation import derive, first_points, limits_of
from llmsim_magic.simulate.sweeps.trace_sequence import Evaluable


class SymbolicRecords:
    """The symbolic traces that answer the workloads of one sweep.

    They are derived, once in a session, for each phase of which the sweep has more workloads than
    a derivation traces.

    Args:
        recipe: the model, which is built.
        replay: whether layers are replayed.
        workloads: the workloads of the sweep.
        progress: called with a message before a derivation.
    """

    def __init__(
        self, recipe: ModelRecipe, replay: bool, workloads: Sequence[Workload], progress: Progress
    ) -> None:
        from llmsim_magic.capture.meta.isolation import default_dtype

        self._recipe, self._replay, self._progress = recipe, replay, progress
        self._model = recipes.build_workload_model(recipe)
        self._dtype = default_dtype()
        self._wanted: dict[str, frozenset[Point]] = {}
        for phase in dict.fromkeys(workload.phase for workload in workloads):
            self._want(phase, [workload for workload in workloads if workload.phase == phase])

    def _want(self, phase: str, workloads: Sequence[Workload]) -> None:
        """Have the formulas of a phase derived if that pays."""
        if symbolic_cache.known(self._model, self._kind(phase)) is not None:
            return
        new = sum(not self._is_traced(workload) for workload in workloads)
        if new > 0:
            points = first_points(phase, limits_of(self._model))
            if new > len(points):
                self._wanted[phase] = points

    def is_needed(self, workload: Workload) -> bool:
        """Whether a derivation will trace this workload anyway."""
        return (workload.batch, workload.context) in self._wanted.get(workload.phase, ())

    def evaluable(self, workload: Workload, cancelled: IsCancelled) -> Evaluable | None:
        """The formulas for a workload; None if it was traced already or has to be.

        The first workload that no derivation needs starts the derivations.
        """
        if self._is_traced(workload) or self.is_needed(workload):
            return None
        self._derive(cancelled)
        symbolic = symbolic_cache.known(self._model, self._kind(workload.phase))
        region = None if symbolic is None else symbolic.region(workload)
        if region is None or not region.fits(workload.batch, workload.context):
            return None
        return Evaluable(region, workload)

    def confirm(self, trace: Trace) -> None:
        """Compare a pass with the formulas, if they were not checked at its context."""
        kind = self._kind(trace.workload.phase)
        symbolic = symbolic_cache.known(self._model, kind)
        if symbolic is not None and trace.workload.context in symbolic.unchecked:
            symbolic_cache.keep(self._model, {kind: symbolic.confirmed(trace)})

    def _derive(self, cancelled: IsCancelled) -> None:
        phases = tuple(self._wanted)
        if not phases:
            return
        self._progress(f"deriving the formulas of {' and '.join(phases)}")
        trace = partial(
            recipes.trace_workload, self._recipe, replay=self._replay, cancelled=cancelled
        )
        found = derive(phases, limits_of(self._model), trace)
        self._wanted.clear()
        symbolic_cache.keep(self._model, {self._kind(phase): each for phase, each in found.items()})

    def _kind(self, phase: str) -> Kind:
        return phase, self._replay, self._dtype

    def _is_traced(self, workload: Workload) -> bool:
        return session_cache.has_trace(self._model, (workload, self._replay, self._dtype))
