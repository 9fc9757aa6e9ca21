"""What a question is answered with: tables, graphs and prose over one record."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.formulas.symbolic import OperatorFormulas
from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.trace.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import PHASES, Workload
from llmsim_magic.simulate.hardware.costing import DeviceCosts
from llmsim_magic.simulate.hardware.deployments import CapacityPlanner
from llmsim_magic.simulate.hardware.size import Sizing, sizing_of
from llmsim_magic.simulate.request import Deployment
from llmsim_magic.simulate.sections import sections
from llmsim_magic.simulate.sections import tables as tables_of
from llmsim_magic.simulate.sweeps.formulas import (
    Symbolic,
    WorkloadTracer,
    derive_formulas,
    shape_formulas,
)
from llmsim_magic.views.csv_export import to_csv
from llmsim_magic.views.explain import Explanation, explain
from llmsim_magic.views.graphs.dependency import dependency_graph
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.graphs.topological import topological_graph
from llmsim_magic.views.page import Section, as_html, as_page, as_text
from llmsim_magic.views.safe_files import write_file, write_files
from llmsim_magic.views.tables import modules, operators, summary, sweeps
from llmsim_magic.views.tables.comparison import comparison_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sweep:
    """Traces of several workloads of one model; `notes` say what does not exist for it.

    `failures` pairs each workload that could not be traced with its reason; `ask` traces more.
    `undone` counts those that a cancel or an interrupt left out.
    """

    traces: tuple[Trace, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[Workload, str], ...] = ()
    ask: WorkloadTracer | None = field(default=None, repr=False, compare=False)
    undone: int = 0

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """Long: one row per operator and workload."""
        return sweeps.sweep_ops_table(self.traces)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """Wide: one row per operator, a column of shapes per workload, and one of formulas."""
        return sweeps.shapes_table(self.traces, self._formulas())

    def _formulas(self) -> dict[str, tuple[OperatorFormulas, ...]]:
        """Formulas for the shapes of each phase."""
        known: dict[str, dict[Point, Trace]] = {}
        for trace in self.traces:
            workload = trace.workload
            known.setdefault(workload.phase, {})[workload.batch, workload.context] = trace
        if self.ask is None:
            return {}
        return {phase: shape_formulas(self.ask, phase, traces) for phase, traces in known.items()}

    @cached_property
    def totals(self) -> "pd.DataFrame":
        """One row per workload: work, traffic and cache of the whole pass, or why it failed."""
        return sweeps.totals_table(self.traces, self.failures)

    def sections(self) -> Iterator[Section]:
        name = self.traces[0].model.name
        totals = self.totals if self.failures else self.totals.drop(columns="error")
        yield Section(f"Workloads of {name}", totals)
        yield Section(
            f"Shapes of {name} by workload (batch × context)",
            self.shapes,
            "Input shapes → output shapes, the sizes that change in bold; "
            "call counts the repetitions of an operator at its path.",
        )

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        return _bundle(list(self.sections()), self.notes)

    def __repr__(self) -> str:
        return as_text(self.sections(), self.notes)


@dataclass(frozen=True)
class Report:
    """What one forward pass does, and any other workloads asked for beside it.

    `views` are those that it shows of itself; every table is there whatever it shows.
    """

    trace: Trace
    views: tuple[str, ...] = ("summary",)
    sweep: Sweep | None = None
    explained: str | None = None
    drawn: Selection = field(default_factory=Selection)
    ask: WorkloadTracer | None = field(default=None, repr=False, compare=False)
    deployed: Deployment = field(default_factory=Deployment)
    sizer: CapacityPlanner | None = field(default=None, repr=False, compare=False)
    beside: "Report | None" = None

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """One row per operator call, in execution order."""
        return operators.ops_table(self.trace)

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per module, containers included."""
        return modules.modules_table(self.trace)

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """One row per tensor that flows between two operators."""
        return operators.edges_table(self.trace)

    @cached_property
    def kernels(self) -> "pd.DataFrame":
        """One row per ATen op."""
        return operators.kernels_table(self.trace)

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """One row per quantity."""
        return summary.summary_table(self.trace)

    @cached_property
    def costing(self) -> DeviceCosts:
        """Times and bytes on the devices asked for, of this pass and of the other phase."""
        if self.sweep is not None:
            others = [trace for trace in self.sweep.traces if trace is not self.trace]
            return DeviceCosts((self.trace, *others), self.deployed, self.sizer)
        return DeviceCosts((self.trace, *self._other_phase()), self.deployed, self.sizer)

    def _other_phase(self) -> Iterator[Trace]:
        workload = self.trace.workload
        for phase in PHASES:
            if self.ask is not None and self.deployed.hardware and phase != workload.phase:
                with suppress(LlmsimError):
                    yield self.ask.trace(replace(workload, phase=phase))

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
        if self.sizer is None:
            raise InvalidValue.must_be(
                "size", "inputs of your own", "for a HuggingFace model by workload"
            )
        return sizing_of(self.sizer, self.costing.setup, self.deployed)

    @cached_property
    def topological(self) -> "pd.DataFrame":
        """Operators in execution order with what each waits for."""
        return operators.topological_table(self.trace)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """One row per operator, a column of shapes per workload, and one of formulas."""
        return (self.sweep or Sweep((self.trace,), ask=self.ask)).shapes

    @cached_property
    def symbolic(self) -> Symbolic:
        """Shapes, FLOPs and bytes as formulas of batch and context, from a dozen more workloads.

        Raises `InvalidValue` for a module that was given its inputs.
        """
        if self.ask is None:
            raise InvalidValue.must_be(
                "symbolic", "inputs of your own", "for a HuggingFace model traced by workload"
            )
        workload = self.trace.workload
        known = {(workload.batch, workload.context): self.trace}
        return derive_formulas(self.ask, workload.phase, known)

    def dependency_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> Graph:
        """Modules as nested boxes with the dataflow between them, opened `depth` deep.

        `layers` are indices, or "all", of layers to draw by themselves rather than folded into
        the first of their like. `level` says what a node is: `module`, `operator` or `kernel`.
        What is not given is as the report was asked for. Raises `InvalidValue`.
        """
        return dependency_graph(self.trace, self._selection(depth, layers, level))

    def topological_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> Graph:
        """Operators in execution order, each below what it waits for; the same options."""
        return topological_graph(self.trace, self._selection(depth, layers, level))

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

        What was written there before is written anew. Raises `OverwriteRefused`, before anything is
        written, for a file that somebody else wrote or changed, unless it may be overwritten;
        `InvalidValue` where the folder cannot be written.
        """
        return write_files(folder, self.files(), overwrite=overwrite)

    def to_html(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the report as it is shown as a page that needs no network.

        Raises `OverwriteRefused` and `InvalidValue`, as `to_csv` does.
        """
        return write_file(path, self.page().encode(), overwrite=overwrite)

    def page(self) -> str:
        """The report as it is shown, as a page that needs no network."""
        return as_page(self.title, self.sections(), self.remarks())

    @property
    def title(self) -> str:
        return f"{self.trace.model.name}: {self.trace.workload}"

    def sections(self) -> Iterator[Section]:
        """The report as it is shown, view by view."""
        return sections(self)

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables shown, by the names of their files."""
        return tables_of(self)

    @cached_property
    def comparison(self) -> "pd.DataFrame":
        """This model and the one beside it: one row per quantity, a column for each, and a ratio.

        Raises `InvalidValue` where there is none.
        """
        if self.beside is None:
            raise InvalidValue.must_be("compare", "nothing", "a second model")
        first, second = self.costing, self.beside.costing
        return comparison_table(
            (first.traces[0], second.traces[0]),
            (first.needed, second.needed),
            (first.passes, second.passes),
        )

    def remarks(self) -> tuple[str, ...]:
        beside = self.sweep.notes if self.sweep else ()
        return tuple(dict.fromkeys((*self.trace.notes, *beside, *self.costing.remarks())))

    def _selection(self, depth: int | None, layers: Unfolded, level: Level | None) -> Selection:
        asked = self.drawn
        return Selection(
            asked.depth if depth is None else depth,
            asked.layers if layers == () else layers,
            level or asked.level,
        )

    @cached_property
    def drawings(self) -> dict[str, Graph]:
        """The graphs shown: `deps`, `topological`."""
        wanted = {}
        if "deps" in self.views:
            wanted["deps"] = self.dependency_graph()
        if "topological" in self.views:
            wanted["topological"] = self.topological_graph()
        return wanted

    def _repr_mimebundle_(self, **options: object) -> dict[str, str]:
        return _bundle(list(self.sections()), self.remarks())

    def __repr__(self) -> str:
        return as_text(self.sections(), self.remarks())


def _bundle(sections: list[Section], remarks: tuple[str, ...]) -> dict[str, str]:
    return {
        "text/html": as_html(sections, remarks),
        "text/plain": as_text(sections, remarks, max_rows=60),
    }
