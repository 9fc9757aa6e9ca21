"""What a question is answered with: tables, graphs and prose over one record."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.analyses.polynomials import Point
from llmsim_magic.analyses.symbolic import OperatorFormulas
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace import Trace
from llmsim_magic.records.workload import Workload
from llmsim_magic.simulate.export import write_all, write_text
from llmsim_magic.simulate.symbolic import Asker, Symbolic, shape_formulas, symbolic
from llmsim_magic.views import graphs, tables
from llmsim_magic.views.costs import costs_table
from llmsim_magic.views.drawing import Graph
from llmsim_magic.views.page import Section, as_html, as_page, as_text
from llmsim_magic.views.prose import Prose, explain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sweep:
    """Traces of several workloads of one model; `notes` say what does not exist for it.

    `failures` pairs each workload that could not be traced with its reason; `ask` traces more.
    """

    traces: tuple[Trace, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[Workload, str], ...] = ()
    ask: Asker | None = field(default=None, repr=False, compare=False)

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """Long: one row per operator and workload."""
        return tables.long_table(self.traces)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """Wide: one row per operator, a column of shapes per workload, and one of formulas."""
        return tables.shapes_table(self.traces, self._formulas())

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
        return tables.totals_table(self.traces, self.failures)

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
    ask: Asker | None = field(default=None, repr=False, compare=False)

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """One row per operator call, in execution order."""
        return tables.ops_table(self.trace)

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per module, containers included."""
        return tables.modules_table(self.trace)

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """One row per tensor that flows between two operators."""
        return tables.edges_table(self.trace)

    @cached_property
    def kernels(self) -> "pd.DataFrame":
        """One row per ATen op."""
        return tables.kernels_table(self.trace)

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """One row per quantity."""
        return tables.summary_table(self.trace)

    @cached_property
    def costs(self) -> "pd.DataFrame":
        """One row per type of operator: FLOPs, bytes, their shares and arithmetic intensity."""
        return costs_table(self.trace)

    @cached_property
    def topological(self) -> "pd.DataFrame":
        """Operators in execution order with what each waits for."""
        return tables.topological_table(self.trace)

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
            raise InvalidValue(
                "symbolic", "inputs of your own", "for a HuggingFace model traced by workload"
            )
        workload = self.trace.workload
        known = {(workload.batch, workload.context): self.trace}
        return symbolic(self.ask, workload.phase, known)

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

    def explain(self, path: str) -> Prose:
        """The arithmetic behind the FLOPs and bytes of the module at `path`.

        Raises `InvalidValue` with the nearest paths where there is none.
        """
        return explain(self.trace, path)

    @property
    def graphs(self) -> Mapping[str, str]:
        """The graphs shown, as SVG: `deps`, `topological`."""
        return {name: graph.svg for name, graph in self.drawings.items()}

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write every table that the report shows as CSV, and its graphs as SVG.

        Raises `InvalidValue` where the folder cannot be written.
        """
        return write_all(folder, self.tables(), self.drawings)

    def to_html(self, path: str | Path) -> Path:
        """Write the report as it is shown as a page that needs no network.

        Raises `InvalidValue` where the file cannot be written.
        """
        return write_text(path, self.page())

    def page(self) -> str:
        """The report as it is shown, as a page that needs no network."""
        title = f"{self.trace.model.name}: {self.trace.workload}"
        return as_page(title, self.sections(), self.remarks())

    def sections(self) -> Iterator[Section]:
        """The report as it is shown, view by view."""
        title = f"{self.trace.model.name}: {self.trace.workload}"
        if "summary" in self.views:
            yield Section(f"Summary of {title}", self.summary)
        if "ops" in self.views:
            yield Section(f"Modules of {title}", self.modules)
            yield Section(f"Operators of {title}", self.ops)
        if "deps" in self.views:
            if "ops" not in self.views:
                yield Section(f"Modules of {title}", self.modules)
            yield Section(
                f"Dataflow of {title}",
                self.edges,
                "Each row is a tensor one operator hands another.",
            )
            yield Section(f"Dependencies of {title}", self.drawings["deps"])
        if "topological" in self.views:
            yield Section(
                f"Execution order of {title}",
                self.topological,
                "Rank: the longest chain of operators before it; equal ranks could run at once.",
            )
            yield Section(f"Topology of {title}", self.drawings["topological"])
        if "multi-config" in self.views and self.sweep:
            yield from self.sweep.sections()
        if "costs" in self.views:
            yield Section(f"Costs of {title} by type of operator", self.costs)
        if self.explained is not None:
            yield Section(
                f"{self.explained or 'The model'} explained", self.explain(self.explained)
            )

    def remarks(self) -> tuple[str, ...]:
        beside = self.sweep.notes if self.sweep else ()
        return tuple(dict.fromkeys((*self.trace.notes, *beside)))

    def _selection(self, depth: int | None, layers: Unfolded, level: Level | None) -> Selection:
        asked = self.drawn
        return Selection(
            asked.depth if depth is None else depth,
            asked.layers if layers == () else layers,
            level or asked.level,
        )

    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables shown, by the names of their files."""
        wanted: dict[str, pd.DataFrame] = {}
        if "summary" in self.views:
            wanted["summary"] = self.summary
        if "ops" in self.views:
            wanted |= {"modules": self.modules, "ops": self.ops, "kernels": self.kernels}
        if "deps" in self.views:
            wanted |= {"modules": self.modules, "edges": self.edges}
        if "topological" in self.views:
            wanted["topological"] = self.topological
        if "costs" in self.views:
            wanted["costs"] = self.costs
        if "multi-config" in self.views and self.sweep:
            wanted |= {
                "shapes": self.sweep.shapes,
                "workloads": self.sweep.totals,
                "sweep_ops": self.sweep.ops,
            }
        return wanted

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
        "text/plain": as_text(sections, remarks, most_rows=60),
    }
