"""What a question is answered with: tables, graphs and prose over one record."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.records.errors import Cancelled, InvalidValue, LlmsimError
from llmsim_magic.records.trace.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import PHASES, IsCancelled, never_cancelled
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_costs import DeviceCosts
from llmsim_magic.simulate.hardware.size import Sizing, sizing_of
from llmsim_magic.simulate.models.recipes import Progress, no_progress, no_tracing
from llmsim_magic.simulate.request import Deployment
from llmsim_magic.simulate.sweeps.formulas import Symbolic, derive_formulas
from llmsim_magic.simulate.sweeps.sweep import Sweep
from llmsim_magic.simulate.sweeps.workload_tracer import WorkloadTracer
from llmsim_magic.simulate.view import View
from llmsim_magic.views.csv_export import to_csv
from llmsim_magic.views.explain import Explanation, explain
from llmsim_magic.views.graphs import graphs
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.page import as_bundle, as_page, as_text
from llmsim_magic.views.safe_files import write, write_file
from llmsim_magic.views.section import Section
from llmsim_magic.views.tables import record_tables
from llmsim_magic.views.tables.comparison import comparison_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one forward pass does, and any other workloads asked for beside it.

    `views` are shown when the report displays itself; every table is there, shown or not.
    `tracer` and `planner` trace further workloads: `memory`, `latency`, `sizing`, `shapes` and
    `symbolic` may use them at the first access, and say so. Displaying never does: `prepare`
    computes what the views show, and the front doors call it before they display.
    """

    trace: Trace
    views: tuple[View["Report"], ...] = ()
    sweep: Sweep | None = None
    explained: str | None = None
    selection: Selection = field(default_factory=Selection)
    deployment: Deployment = field(default_factory=Deployment)
    compared: "Report | None" = None
    tracer: WorkloadTracer | None = field(default=None, repr=False, compare=False)
    planner: CapacityPlanner | None = field(default=None, repr=False, compare=False)

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """One row per operator call, in execution order."""
        return record_tables.ops_table(self.trace)

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per module, containers included."""
        return record_tables.modules_table(self.trace)

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """One row per tensor that flows between two operators."""
        return record_tables.edges_table(self.trace)

    @cached_property
    def kernels(self) -> "pd.DataFrame":
        """One row per ATen op."""
        return record_tables.kernels_table(self.trace)

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """One row per quantity."""
        return record_tables.summary_table(self.trace)

    @cached_property
    def costing(self) -> DeviceCosts:
        """Times and bytes on the devices asked for, of this pass and of the other phase."""
        if self.sweep is not None:
            others = [trace for trace in self.sweep.traces if trace is not self.trace]
            return DeviceCosts((self.trace, *others), self.deployment, self.planner)
        return DeviceCosts((self.trace, *self._other_phase()), self.deployment, self.planner)

    def _other_phase(self) -> Iterator[Trace]:
        workload = self.trace.workload
        for phase in PHASES:
            if self.tracer is not None and self.deployment.hardware and phase != workload.phase:
                with suppress(LlmsimError):
                    yield self.tracer.trace(replace(workload, phase=phase))

    @property
    def costs(self) -> "pd.DataFrame":
        """One row per type of operator: FLOPs, bytes, their shares, and time on a device."""
        return self.costing.types

    @property
    def layers(self) -> "pd.DataFrame":
        """One row per layer, and one for all outside: parameters, work, bytes, time on a device."""
        return self.costing.layers

    @property
    def memory(self) -> "pd.DataFrame":
        """One row per part of what a device holds: weights, cache, activations, runtime."""
        return self.costing.memory

    @property
    def latency(self) -> "pd.DataFrame":
        """One row per device and pass: seconds with their band, tokens per second, what binds."""
        return self.costing.latency

    @property
    def times(self) -> "pd.DataFrame":
        """One row per operator: its seconds on the first device, with their band."""
        return self.costing.times

    @cached_property
    def sizing(self) -> Sizing:
        """Which devices hold it, and how fast it is there.

        Raises `InvalidValue` for a module that was given its inputs.
        """
        if self.planner is None:
            raise InvalidValue("sizing: a module that was traced on given inputs has no workload")
        return sizing_of(self.planner, self.costing.setup, self.deployment)

    @cached_property
    def topological(self) -> "pd.DataFrame":
        """Operators in execution order with what each waits for."""
        return record_tables.topological_table(self.trace)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """One row per operator, a column of shapes per workload, and one of formulas.

        Of a single workload, the first access traces a few more to find the formulas.
        """
        if self.sweep is not None:
            return self.sweep.shapes
        return Sweep(traces=(self.trace,), tracer=self.tracer).shapes

    @cached_property
    def symbolic(self) -> Symbolic:
        """Shapes, FLOPs and bytes as formulas of batch and context, from a dozen more workloads.

        Raises `InvalidValue` for a module that was given its inputs.
        """
        if self.tracer is None:
            raise InvalidValue("symbolic: a module that was traced on given inputs has no workload")
        workload = self.trace.workload
        known = {(workload.batch, workload.context): self.trace}
        return derive_formulas(self.tracer, workload.phase, known)

    def dependency_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> Graph:
        """Modules as nested boxes with the dataflow between them, opened `depth` deep.

        `layers` are indices, or "all", of layers to draw by themselves rather than folded into
        the first of their like. `level` says what a node is: `module`, `operator` or `kernel`.
        What is not given is as the report was asked for. Raises `InvalidValue`.
        """
        return graphs.dependency_graph(self.trace, self._selection(depth, layers, level))

    def topological_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> Graph:
        """Operators in execution order, each below what it waits for; the same options."""
        return graphs.topological_graph(self.trace, self._selection(depth, layers, level))

    def explain(self, path: str) -> Explanation:
        """The arithmetic behind the FLOPs and bytes of the module at `path`.

        Raises `InvalidValue` with the nearest paths where there is none.
        """
        return explain(self.trace, path)

    @property
    def graphs(self) -> Mapping[str, str]:
        """The graphs shown, as SVG: `deps`, `topological`."""
        return {name: graph.svg for name, graph in self.drawings.items()}

    def files(self) -> dict[str, bytes]:
        """Every table that the report shows as CSV, and its pictures as SVG, by file."""
        made = {f"{name}.csv": to_csv(table) for name, table in self.tables().items()}
        made |= {f"{name}.svg": graph.svg.encode() for name, graph in self.drawings.items()}
        if self.costing.devices:
            made["timeline.json"] = self.costing.events.encode()
            made["roofline.svg"] = self.costing.roofline.svg.encode()
        return made

    def to_csv(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write `files` into a folder: each whole, and none where one cannot be.

        What was written there before is written anew. Raises `NotOurs`, before anything is
        written, for a file that somebody else wrote or changed, unless it may be overwritten;
        `InvalidValue` where the folder cannot be written.
        """
        return write(folder, self.files(), overwrite=overwrite)

    def to_html(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the report as it is shown as a page that needs no network.

        Raises `NotOurs` and `InvalidValue`, as `to_csv` does.
        """
        return write_file(path, self.page().encode(), overwrite=overwrite)

    def page(self) -> str:
        """The report as it is shown, as a page that needs no network."""
        with no_tracing():
            return as_page(self.title, self.sections(), self.remarks())

    @property
    def title(self) -> str:
        return f"{self.trace.model.name}: {self.trace.workload}"

    def shows(self, name: str) -> bool:
        """Whether one of the views shown has this name."""
        return any(view.name == name for view in self.views)

    def prepare(
        self, progress: Progress = no_progress, cancelled: IsCancelled = never_cancelled
    ) -> "Report":
        """Compute what the views show and may have to trace for; the report itself is returned.

        Raises:
            Cancelled: it was cancelled before all was computed.
            LlmsimError: what a view shows cannot be computed.
        """
        for view in self.views:
            if cancelled():
                raise Cancelled(
                    f"{self.trace.model.name}: cancelled before {view.title} was computed"
                )
            if view.compute is not None:
                progress(f"computing {view.title.lower()}")
                view.compute(self)
        return self

    def sections(self) -> tuple[Section, ...]:
        """The parts of the page, view by view; nothing is traced for them."""
        with no_tracing():
            return tuple(section for view in self.views for section in view.sections(self))

    def tables(self) -> "dict[str, pd.DataFrame]":
        """Every table that the views show or sum up, by the name of its file."""
        found: dict[str, pd.DataFrame] = {}
        for view in self.views:
            found |= view.tables(self)
        return found

    @property
    def compared_names(self) -> tuple[str, str]:
        """The names of the two models that `comparison` compares."""
        second = self.compared.trace.model.name if self.compared else ""
        return self.trace.model.name, second

    @cached_property
    def comparison(self) -> "pd.DataFrame":
        """This model and the one beside it: one row per quantity, a column for each, and a ratio.

        Raises `InvalidValue` where there is none.
        """
        if self.compared is None:
            raise InvalidValue("comparison: the report was not asked to compare with a model")
        first, second = self.costing, self.compared.costing
        return comparison_table(
            (first.traces[0], second.traces[0]),
            (first.needed, second.needed),
            (first.passes, second.passes),
        )

    def remarks(self) -> tuple[str, ...]:
        beside = self.sweep.notes if self.sweep else ()
        return tuple(dict.fromkeys((*self.trace.notes, *beside, *self.costing.remarks())))

    def _selection(self, depth: int | None, layers: Unfolded, level: Level | None) -> Selection:
        asked = self.selection
        return Selection(
            asked.depth if depth is None else depth,
            asked.layers if layers == () else layers,
            level or asked.level,
        )

    @cached_property
    def drawings(self) -> dict[str, Graph]:
        """The graphs shown: `deps`, `topological`."""
        return {view.name: view.draw(self) for view in self.views if view.draw is not None}

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        with no_tracing():
            return as_bundle(self.sections(), self.remarks())

    def __repr__(self) -> str:
        with no_tracing():
            return as_text(self.sections(), self.remarks())
