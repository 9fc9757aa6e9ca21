"""What a pass does as formulas of batch and context: which workloads to trace, and the tables."""

from collections.abc import Iterable
from dataclasses import dataclass
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
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import whole_number
from llmsim_magic.simulate.sweeps.workload_tracer import CHECK_POINTS, NEAR_GRID, WorkloadTracer
from llmsim_magic.views.tables import formulas
from llmsim_magic.views.tables.formulas import CONTEXTS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Symbolic:
    """Formulas of one phase, in `B`, the batch, and `S` (prefill) or `C` (decode), the context.

    `ops` has a row for each operator, `totals` for each sum; a cell is a sympy expression, or NA
    where none holds at every workload that was traced for it: some determine the formulas, the
    others check them.
    """

    phase: str
    operators: tuple[OperatorFormulas, ...]
    sums: dict[str, Size]
    points: tuple[Point, ...]  # the workloads traced: batch, context

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """`path, op, input_shapes, output_shapes`, work and bytes, index `order`."""
        return formulas.ops_table(self.operators, CONTEXTS[self.phase])

    @cached_property
    def totals(self) -> "pd.DataFrame":
        """`formula` of each sum over the pass, index `quantity`."""
        return formulas.totals_table(self.sums, CONTEXTS[self.phase])

    @property
    def most(self) -> Point:
        """The largest batch and context that the formulas were checked at."""
        return max(batch for batch, _ in self.points), max(context for _, context in self.points)

    def evaluate(self, **sizes: int) -> "pd.DataFrame":
        """The same table as `ops` in numbers: `evaluate(B=64, C=32768)`.

        Raises `InvalidValue` for other names, a size below 1, or one beyond `most`.
        """
        names = ("B", CONTEXTS[self.phase])
        if set(sizes) != set(names):
            given = ", ".join(sizes) or "nothing"
            raise InvalidValue.must_be(
                "evaluate", given, f"a size for each of {names[0]} and {names[1]}"
            )
        batch, context = (whole_number(name, sizes[name]) for name in names)
        for name, size, most in zip(names, (batch, context), self.most, strict=True):
            if size > most:
                raise InvalidValue.must_be(
                    f"evaluate: {name}", size, f"within what was checked, up to {most}: trace it"
                )
        return formulas.ops_table(self.operators, names[1], (batch, context))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": formulas.as_html(self.totals, self.ops)}

    def __repr__(self) -> str:
        return f"{self.totals.to_string()}\n\n{self.ops.to_string(max_rows=60)}"


def derive_formulas(tracer: WorkloadTracer, phase: str, known: Traces) -> Symbolic:
    """The formulas of a phase; the traces that are `known` check them, as others do.

    Raises `InvalidValue` for a module that was given its inputs: it has no batch and context.
    """
    if phase not in CONTEXTS:
        raise InvalidValue.must_be("symbolic", phase, "prefill or decode of a HuggingFace model")
    traces = dict(known)
    tracer.add(phase, traces, (*NEAR_GRID.points, *CHECK_POINTS, *tracer.long_checks(phase)))
    regimes = Regimes(NEAR_GRID)
    found, sums = operator_formulas(traces, regimes), total_formulas(traces, regimes)
    if not all(each.is_complete for each in found):
        found, sums = _in_two_regimes(tracer, phase, traces)
    return Symbolic(phase, found, sums, tuple(traces))


def sweep_formulas(
    tracer: WorkloadTracer, traces: Iterable[Trace]
) -> dict[str, tuple[OperatorFormulas, ...]]:
    """Formulas for the shapes of each phase of a sweep; a few further workloads are traced."""
    known: dict[str, dict[Point, Trace]] = {}
    for trace in traces:
        workload = trace.workload
        known.setdefault(workload.phase, {})[workload.batch, workload.context] = trace
    return {phase: shape_formulas(tracer, phase, found) for phase, found in known.items()}


def shape_formulas(
    tracer: WorkloadTracer, phase: str, known: Traces
) -> tuple[OperatorFormulas, ...]:
    """Formulas for the shapes of a sweep.

    Sizes are mostly linear in either, so that two batches and two contexts determine them, and a
    sweep over these needs but a few workloads more to check them with.
    """
    batches, contexts = (sorted({point[axis] for point in known}) for axis in (0, 1))
    grid = Grid((batches[0], batches[-1]), (contexts[0], contexts[-1]))
    if len(set(grid.points)) < 4 or not set(grid.points) <= set(known):
        grid = Grid(NEAR_GRID.batches, NEAR_GRID.contexts[:2])
    traces = dict(known)
    tracer.add(phase, traces, (*grid.points, (1, 1), *tracer.long_checks(phase)))
    found = operator_formulas(traces, Regimes(grid), only_shapes=True)
    if all(each.is_complete for each in found):
        return found
    return _in_two_regimes(tracer, phase, traces, only_shapes=True)[0]


def _in_two_regimes(
    tracer: WorkloadTracer, phase: str, traces: dict[Point, Trace], *, only_shapes: bool = False
) -> tuple[tuple[OperatorFormulas, ...], dict[str, Size]]:
    """The formulas of short and of long contexts, checked beside where one gives way to the other.

    Of operators and, but for shapes, of sums. Adds to the traces what it needs.
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
