"""Derive shapes, FLOPs and bytes as formulas of batch and context."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmsim_magic.analyses.formulas.polynomials import Grid, Point
from llmsim_magic.analyses.formulas.symbolic import (
    OperatorFormulas,
    Regimes,
    Size,
    Traces,
    operator_formulas,
    regime_boundaries,
    total_formulas,
)
from llmsim_magic.records.errors import InvalidValue, one_of
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import whole_number
from llmsim_magic.simulate.sweeps.workload_tracer import NEAR_GRID, WorkloadTracer
from llmsim_magic.views.tables import formulas
from llmsim_magic.views.tables.formulas import CONTEXTS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Symbolic:
    """Formulas of one phase in the batch `B` and the context `S`, or `C` in decode.

    A cell of `ops` and `totals` is a sympy expression, or NA if no formula fits every traced
    workload. Some workloads determine the formulas, the others check them.

    Attributes:
        phase: `prefill`, `decode` or `train`.
        operators: the formulas of each operator.
        sums: the formulas of the whole pass, by quantity.
        points: (batch, context) of every traced workload.
    """

    phase: str
    operators: tuple[OperatorFormulas, ...]
    sums: dict[str, Size]
    points: tuple[Point, ...]

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """One row per operator: path, op, shapes, FLOPs and bytes as formulas; index `order`."""
        return formulas.ops_table(self.operators, CONTEXTS[self.phase])

    @cached_property
    def totals(self) -> "pd.DataFrame":
        """One row per quantity of the whole pass, with its `formula`; index `quantity`."""
        return formulas.totals_table(self.sums, CONTEXTS[self.phase])

    @property
    def most(self) -> Point:
        """The largest batch and the longest context that the formulas were checked at."""
        return max(batch for batch, _ in self.points), max(context for _, context in self.points)

    def evaluate(self, **sizes: int) -> "pd.DataFrame":
        """Evaluate the formulas of `ops` for one batch and context.

        Args:
            **sizes: the batch `B`, and the context `S`, or `C` in decode, in tokens.

        Returns:
            The table `ops` with numbers instead of formulas; bytes and FLOPs as integers.

        Raises:
            InvalidValue: another name, a size below 1, or a size larger than `most`.

        >>> import llmsim_magic as llmsim
        >>> symbolic = llmsim.trace("Qwen/Qwen3-0.6B").symbolic
        >>> symbolic.evaluate(B=2, S=64).loc[18, "input_shapes"]
        [(2, 64, 1024)]
        """
        names = ("B", CONTEXTS[self.phase])
        if set(sizes) != set(names):
            given = ", ".join(sizes) or "nothing"
            raise InvalidValue(
                f"evaluate() takes exactly {names[0]} and {names[1]} for {self.phase}, as in "
                f"evaluate({names[0]}=2, {names[1]}=64), but was given {given}"
            )
        batch, context = (whole_number(name, sizes[name]) for name in names)
        for name, size, most in zip(names, (batch, context), self.most, strict=True):
            if size > most:
                raise InvalidValue(
                    f"evaluate: {name}={size} is beyond {most}, the largest value that the "
                    "formulas were checked at; trace this workload instead"
                )
        return formulas.ops_table(self.operators, names[1], (batch, context))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": formulas.as_html(self.totals, self.ops)}

    def __repr__(self) -> str:
        return f"{self.totals.to_string()}\n\n{self.ops.to_string(max_rows=60)}"


def derive_formulas(tracer: WorkloadTracer, phase: str, known: Traces) -> Symbolic:
    """Derive the formulas of a phase.

    Args:
        tracer: traces the workloads that determine and check the formulas.
        phase: `prefill`, `decode` or `train`.
        known: existing traces by (batch, context); they check the formulas too.

    Raises:
        InvalidValue: a phase without batch and context.
    """
    if phase not in CONTEXTS:
        raise InvalidValue(
            f"symbolic is available for {one_of(CONTEXTS)} of a HuggingFace model, not for {phase}"
        )
    traces = dict(known)
    tracer.add(
        phase, traces, (*NEAR_GRID.points, *tracer.checks(phase), *tracer.long_checks(phase))
    )
    regimes = Regimes(NEAR_GRID)
    found, sums = operator_formulas(traces, regimes), total_formulas(traces, regimes)
    if not all(each.is_complete for each in found):
        found, sums = _in_two_regimes(tracer, phase, traces)
    return Symbolic(phase, found, sums, tuple(traces))


def sweep_formulas(
    tracer: WorkloadTracer, traces: Iterable[Trace]
) -> dict[str, tuple[OperatorFormulas, ...]]:
    """Formulas of the shapes of each phase of a sweep; traces a few more workloads."""
    found: dict[str, dict[Point, Trace]] = {}
    known = tuple(traces)
    for trace in known:
        workload = trace.workload
        found.setdefault(workload.phase, {})[workload.batch, workload.context] = trace
    tracer = replace(tracer, known=known)
    grids = {phase: _grid(each) for phase, each in found.items()}
    points = {
        phase: (*grid.points, (1, 1), *tracer.long_checks(phase)) for phase, grid in grids.items()
    }
    tracer.add_phases(found, points)
    return {
        phase: _shape_formulas(tracer, phase, each, grids[phase]) for phase, each in found.items()
    }


def _grid(known: Traces) -> Grid:
    """The workloads that determine the shapes of one phase of a sweep.

    Sizes are mostly linear in batch and in context, so two batches and two contexts determine
    them; a sweep that has these needs only a few more workloads as a check.
    """
    batches, contexts = (sorted({point[axis] for point in known}) for axis in (0, 1))
    grid = Grid((batches[0], batches[-1]), (contexts[0], contexts[-1]))
    if len(set(grid.points)) < 4 or not set(grid.points) <= set(known):
        return Grid(NEAR_GRID.batches, NEAR_GRID.contexts[:2])
    return grid


def _shape_formulas(
    tracer: WorkloadTracer, phase: str, traces: dict[Point, Trace], grid: Grid
) -> tuple[OperatorFormulas, ...]:
    """Formulas of the shapes of one phase, from its grid or else in two regimes."""
    found = operator_formulas(traces, Regimes(grid), only_shapes=True)
    if all(each.is_complete for each in found):
        return found
    return _in_two_regimes(tracer, phase, traces, only_shapes=True)[0]


def _in_two_regimes(
    tracer: WorkloadTracer, phase: str, traces: dict[Point, Trace], *, only_shapes: bool = False
) -> tuple[tuple[OperatorFormulas, ...], dict[str, Size]]:
    """Formulas for short and for long contexts, checked around the boundary of the two regimes.

    Adds the workloads it traces to `traces`. With `only_shapes` there are no sums.
    """
    far = tracer.far(phase)
    regimes = Regimes(NEAR_GRID, far)

    def found() -> tuple[tuple[OperatorFormulas, ...], dict[str, Size]]:
        sums = {} if only_shapes else total_formulas(traces, regimes)
        return operator_formulas(traces, regimes, only_shapes=only_shapes), sums

    tracer.add(phase, traces, (*NEAR_GRID.points, *far.points))
    ends = regime_boundaries(*found(), NEAR_GRID, far)
    tracer.add(phase, traces, ((far.batches[0], end + step) for end in ends for step in (0, 1, 2)))
    return found()
