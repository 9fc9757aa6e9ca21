"""Sweep, the result of `sweep()`: traces of several workloads of one model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from llmsim_magic.analyses.allocations.step_memory import step_memory
from llmsim_magic.analyses.cost.operator_costs import Totals
from llmsim_magic.analyses.formulas.symbolic import OperatorFormulas
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.sweeps.trace_sequence import totals_by_workload
from llmsim_magic.simulate.sweeps.workload_tracer import WorkloadTracer
from llmsim_magic.views.headlines import size_figures, workloads_figure
from llmsim_magic.views.pages.text_page import as_text
from llmsim_magic.views.section import Page, Part, Section

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.simulate.hardware.device_passes import DevicePasses


_MOST_COLUMNS = 12  # workloads beside each other in one table
_SHAPE_COLUMNS = ("path", "op", "call", "symbolic", "changes")
_NO_FORMULAS = " Read `.shapes` to add the formulas; this traces a few more workloads."


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Traces of several workloads of one model; it displays itself in a notebook.

    Attributes:
        traces: the trace of each workload that succeeded; evaluated when read if formulas give it.
        notes: which phases the model does not have, and remarks on the traces.
        failures: each workload that failed, with the reason.
        undone: number of workloads skipped by a cancellation or an interrupt.
        tracer: traces the further workloads that determine `formulas`; never used for display.
        passes: the workloads with the device whose times `totals` has; None for no device.

    >>> import llmsim_magic as llmsim
    >>> sweep = llmsim.sweep("gpt2", batch=[1, 16], context=[128], phase="prefill")
    >>> sweep.totals["batch"].tolist()
    [1, 16]
    """

    traces: Sequence[Trace]
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[Workload, str], ...] = ()
    undone: int = 0
    tracer: WorkloadTracer | None = field(default=None, repr=False, compare=False)
    passes: "DevicePasses | None" = field(default=None, repr=False, compare=False)

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """Long format: one row per operator and workload."""
        from llmsim_magic.views.tables.sweeps import sweep_ops_table

        return sweep_ops_table(self.traces)

    @cached_property
    def formulas(self) -> dict[str, tuple[OperatorFormulas, ...]]:
        """Formulas of the shapes by phase; the first access traces a few more workloads."""
        from llmsim_magic.simulate.sweeps.formulas import sweep_formulas

        return {} if self.tracer is None else sweep_formulas(self.tracer, self.traces)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """Wide format: one row per operator, a column of shapes per workload, and formulas."""
        from llmsim_magic.views.tables.sweeps import shapes_table

        return shapes_table(self.traces, self.formulas)

    @cached_property
    def totals(self) -> "pd.DataFrame":
        """One row per workload: FLOPs, bytes and cache bytes of the pass, or why it failed.

        Of training steps also the peak of allocated bytes. On a device also seconds with their
        band, and tokens per second.
        """
        if self.passes is None:
            return self._work
        from llmsim_magic.views.tables.sweeps import with_predictions

        return with_predictions(self._work, self.passes.first_passes)

    @cached_property
    def _work(self) -> "pd.DataFrame":
        """The totals without times."""
        from llmsim_magic.views.tables.sweeps import totals_table

        peaks = {
            trace.workload: step_memory(trace).alive.total
            for trace in self.traces
            if trace.training is not None
        }
        return totals_table(self._totals, self.failures, peaks)

    @cached_property
    def _totals(self) -> dict[Workload, Totals]:
        """The totals of each workload; those that formulas give need no trace."""
        return totals_by_workload(self.traces)

    def sections(self, seconds: Mapping[Workload, float] | None = None) -> Iterator[Section]:
        """The workloads side by side, and the shapes of each operator; traces nothing.

        Args:
            seconds: the time of each workload on a device, if there is one.
        """
        from llmsim_magic.views.charts.workload_maps import workload_maps
        from llmsim_magic.views.tables.sweeps import shapes_table, with_times

        totals = self._work if seconds else self.totals
        if not self.failures:
            totals = totals.drop(columns="error")
        if seconds:
            totals = with_times(totals, seconds)
        is_small = len(self.traces) <= _MOST_COLUMNS
        if not is_small:
            for heat_map in workload_maps(self._totals, seconds):
                yield Section("", heat_map)
        bars = ("flops", "bytes_read", "cache_bytes", "peak_bytes", "time_s")
        yield Section("" if is_small else "Workloads", totals, bars=bars, is_detail=not is_small)
        has_formulas = "shapes" in vars(self)
        shapes = self.shapes if has_formulas else shapes_table(self.traces, {})
        if not is_small:
            shapes = shapes[[name for name in shapes if name in _SHAPE_COLUMNS]]
        remark = "" if is_small else f"Shapes of {len(self.traces)} workloads: --csv or `.shapes`."
        yield Section(
            "Shapes by workload (batch × context)" if is_small else "Shapes as formulas",
            shapes,
            remark + ("" if has_formulas else _NO_FORMULAS),
        )

    def _page(self) -> Page:
        name = self.traces[0].model.name
        figures = (
            *size_figures(self.traces[0]),
            workloads_figure(len(self.traces)),
        )
        part = Part(
            "multi-config", "Shapes", f"Workloads of {name}", figures, tuple(self.sections())
        )
        return Page(name, (part,), notes=self.notes)

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        from llmsim_magic.views.pages.html_page import as_bundle

        return as_bundle(self._page())

    def __repr__(self) -> str:
        return as_text(self._page())
