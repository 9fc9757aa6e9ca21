"""The tables and graphs of a report: every one is available, whether a view shows it or not.

Each imports what makes it at its first access: a process that answers one question loads no more.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.trace.selection import Level, Selection, Unfolded
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import PHASES, TRAIN
from llmsim_magic.simulate.hardware.device_costs import DeviceCosts
from llmsim_magic.simulate.request import Deployment, Limits

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.analyses.time.pass_time import OperatorTime
    from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
    from llmsim_magic.simulate.hardware.size import Sizing
    from llmsim_magic.simulate.sweeps.formulas import Symbolic
    from llmsim_magic.simulate.sweeps.sweep import Sweep
    from llmsim_magic.simulate.sweeps.workload_tracer import WorkloadTracer
    from llmsim_magic.simulate.training.alternatives import Alternatives
    from llmsim_magic.views.explain import Explanation
    from llmsim_magic.views.graphs.graph import Graph
    from llmsim_magic.views.tables.conditions import Condition


@dataclass(frozen=True, kw_only=True)
class ReportTables:
    """The tables and graphs of one traced pass or training step, computed at their first access.

    `memory`, `latency`, `sizing`, `alternatives`, `shapes` and `symbolic` may trace further
    workloads.

    Attributes:
        trace: the frozen record of the pass.
        sweep: the traces of every requested workload, if there are several.
        selection: depth, layers and level of the graphs.
        deployment: devices, stored dtypes, runtime and launch.
        limits: what the model may take at most.
        compared: the report of the second model of a comparison.
        tracer: traces further workloads of the model.
        planner: traces further parallel layouts and setups of the model.
    """

    trace: Trace
    sweep: "Sweep | None" = None
    selection: Selection = field(default_factory=Selection)
    deployment: Deployment = field(default_factory=Deployment)
    limits: Limits = field(default_factory=Limits)
    compared: "ReportTables | None" = None
    tracer: "WorkloadTracer | None" = field(default=None, repr=False, compare=False)
    planner: "CapacityPlanner | None" = field(default=None, repr=False, compare=False)

    @cached_property
    def ops(self) -> "pd.DataFrame":
        """One row per operator call, in execution order."""
        from llmsim_magic.views.tables.operators import ops_table

        return ops_table(self.trace)

    @cached_property
    def modules(self) -> "pd.DataFrame":
        """One row per module, containers included."""
        from llmsim_magic.views.tables.modules import modules_table

        return modules_table(self.trace)

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """One row per tensor that one operator writes and another one reads."""
        from llmsim_magic.views.tables.operators import edges_table

        return edges_table(self.trace)

    @cached_property
    def kernels(self) -> "pd.DataFrame":
        """One row per ATen kernel, in execution order."""
        from llmsim_magic.views.tables.operators import kernels_table

        return kernels_table(self.trace)

    @cached_property
    def summary(self) -> "pd.DataFrame":
        """One row per quantity of the pass: parameters, FLOPs, bytes, cache and others."""
        from llmsim_magic.views.tables.summary import summary_table

        return summary_table(self.trace)

    @cached_property
    def costing(self) -> DeviceCosts:
        """Time and memory on the requested devices, of this pass and of the other phase."""
        if self.sweep is not None:
            others = [trace for trace in self.sweep.traces if trace is not self.trace]
            return DeviceCosts((self.trace, *others), self.deployment, self.planner)
        return DeviceCosts((self.trace, *self._other_phase()), self.deployment, self.planner)

    def _other_phase(self) -> Iterator[Trace]:
        workload = self.trace.workload
        for phase in PHASES if workload.phase in PHASES else ():
            if self.tracer is not None and self.deployment.hardware and phase != workload.phase:
                with suppress(LlmsimError):
                    yield self.tracer.trace(replace(workload, phase=phase))

    @property
    def costs(self) -> "pd.DataFrame":
        """One row per type of operator: FLOPs, bytes, shares, seconds under the first runtime."""
        return self.costing.types

    @property
    def layers(self) -> "pd.DataFrame":
        """One row per layer and one for the rest: FLOPs, bytes, seconds under the first runtime."""
        return self.costing.layers

    @property
    def memory(self) -> "pd.DataFrame":
        """One row per runtime and part of device memory in bytes: weights, cache, activations."""
        return self.costing.memory

    @cached_property
    def timeline(self) -> "pd.DataFrame":
        """One row per pass and block of layers of a training step: bytes, and what grows.

        Raises:
            InvalidValue: the report is not of a training step.
        """
        if self.trace.training is None:
            raise InvalidValue(
                "timeline is not available: it is of the memory of a training step, phase train"
            )
        from llmsim_magic.views.tables.memory import timeline_table

        return timeline_table(self.trace)

    @property
    def latency(self) -> "pd.DataFrame":
        """One row per device, runtime, launch and pass: seconds with their band, tokens/s."""
        return self.costing.latency

    @property
    def times(self) -> "pd.DataFrame":
        """One row per operator, runtime and launch: seconds on the first device, with a band."""
        return self.costing.times

    @cached_property
    def sizing(self) -> "Sizing":
        """Which devices hold the model, and how fast it runs on each; as `llmsim.size`.

        Raises:
            InvalidValue: the module was traced on given inputs.
        """
        if self.planner is None:
            raise InvalidValue(
                "sizing is not available: a module that was traced on given inputs has no batch "
                "and context"
            )
        from llmsim_magic.simulate.hardware.size import sizing_of

        setup = self.costing.setup
        if setup.phase != TRAIN:
            setup = replace(setup, phase="prefill")
        planner = self.planner
        return sizing_of(planner, setup, self.deployment, planner.cancelled, planner.progress)

    @property
    def alternatives(self) -> "pd.DataFrame":
        """What would make a training step fit the devices, or run faster: one row per change.

        Bytes, whether it fits, seconds of a step and tokens/s of the step as it was asked for and
        with checkpointing, adapters, other optimizers, ZeRO and so on, what fits and is fastest
        first. The first access traces each.

        Raises:
            InvalidValue: it is no training step, no device was named, or the module was traced on
                given inputs.
        """
        return self.traced_alternatives.table

    @cached_property
    def traced_alternatives(self) -> "Alternatives":
        """The rows of `alternatives`, and the changes that the model does not support."""
        if self.trace.training is None:
            raise InvalidValue("alternatives is not available: it is of phase train alone")
        if not self.costing.devices:
            raise InvalidValue("alternatives is not available: name devices, as hardware='H100'")
        if self.planner is None:
            raise InvalidValue(
                "alternatives is not available: a module that was traced on given inputs is not "
                "built again"
            )
        from llmsim_magic.simulate.training.alternatives import alternatives

        return alternatives(self.planner, self.trace, self.deployment)

    @cached_property
    def checked(self) -> "tuple[Condition, ...]":
        """Each limit with the figure that it is for; on devices, also whether the model fits.

        Raises:
            LlmsimError: a figure cannot be predicted.
        """
        from llmsim_magic.simulate.conditions import conditions

        return conditions(self)

    @property
    def conditions(self) -> "pd.DataFrame":
        """One row per condition of `checked`: whether it holds, the figure and its limit."""
        from llmsim_magic.views.tables.conditions import conditions_table

        return conditions_table(self.checked)

    @cached_property
    def topological(self) -> "pd.DataFrame":
        """One row per operator in execution order, with the operators it depends on."""
        from llmsim_magic.views.tables.operators import topological_table

        return topological_table(self.trace)

    @cached_property
    def shapes(self) -> "pd.DataFrame":
        """One row per operator, a column of shapes per workload, and one of formulas.

        The first access may trace a few more workloads to derive the formulas.
        """
        if self.sweep is not None:
            return self.sweep.shapes
        from llmsim_magic.simulate.sweeps.sweep import Sweep

        return Sweep(traces=(self.trace,), tracer=self.tracer).shapes

    @cached_property
    def symbolic(self) -> "Symbolic":
        """Shapes, FLOPs and bytes as formulas of batch and context.

        The first access traces about a dozen more workloads.

        Raises:
            InvalidValue: the module was traced on given inputs.
        """
        if self.tracer is None:
            raise InvalidValue(
                "symbolic is not available: a module that was traced on given inputs has no batch "
                "and context"
            )
        from llmsim_magic.simulate.sweeps.formulas import derive_formulas

        workload = self.trace.workload
        known = {(workload.batch, workload.context): self.trace}
        return derive_formulas(self.tracer, workload.phase, known)

    def dependency_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> "Graph":
        """Draw modules as nested boxes with the dataflow between them.

        Args:
            depth: levels of modules to open; by default the report's, or what fits a screen.
            layers: indices of layers to draw one by one instead of folded, or "all".
            level: what a node is: `module`, `operator` or `kernel`.

        Returns:
            The graph; it displays itself, and has `svg`, `dot` and `save(path)`.

        Raises:
            InvalidValue: an unknown level, or a layer that does not exist.

        >>> import llmsim_magic as llmsim
        >>> graph = llmsim.trace("gpt2", context=8).dependency_graph(level="module")
        >>> graph.dot.startswith("digraph")
        True
        """
        from llmsim_magic.views.graphs.dependency import dependency_graph

        selection = self._selection(depth, layers, level)
        return dependency_graph(self.trace, selection, self._times(selection.level))

    def topological_graph(
        self, depth: int | None = None, *, layers: Unfolded = (), level: Level | None = None
    ) -> "Graph":
        """Draw operators in execution order, each below the operators it depends on.

        Args:
            depth: as in `dependency_graph`.
            layers: as in `dependency_graph`.
            level: as in `dependency_graph`.

        Returns:
            The graph; it displays itself, and has `svg`, `dot` and `save(path)`.

        Raises:
            InvalidValue: as in `dependency_graph`.
        """
        from llmsim_magic.views.graphs.topological import topological_graph

        selection = self._selection(depth, layers, level)
        return topological_graph(self.trace, selection, self._times(selection.level))

    def explain(self, path: str) -> "Explanation":
        """Explain the FLOPs and bytes of a module, term by term.

        Args:
            path: the path of a module, such as `model.layers.0.mlp.up_proj`; "" is the model.

        Returns:
            The explanation; it displays itself.

        Raises:
            InvalidValue: no module has this path; the message names the nearest ones.

        >>> import llmsim_magic as llmsim
        >>> report = llmsim.trace("gpt2", context=8)
        >>> "transformer.h.0.mlp.c_fc" in str(report.explain("transformer.h.0.mlp.c_fc"))
        True
        """
        from llmsim_magic.views.explain import explain

        return explain(self.trace, path)

    @property
    def compared_names(self) -> tuple[str, str]:
        """The names of the two models of `comparison`."""
        second = self.compared.trace.model.name if self.compared else ""
        return self.trace.model.name, second

    @cached_property
    def comparison(self) -> "pd.DataFrame":
        """Two models side by side: one row per quantity, a column per model, and the ratio.

        Raises:
            InvalidValue: the report has no second model.
        """
        from llmsim_magic.views.tables.comparison import comparison_table

        first, second = self.costing, self._second("comparison").costing
        return comparison_table(
            (first.traces[0], second.traces[0]),
            (first.first_memory, second.first_memory),
            (first.first_passes, second.first_passes),
        )

    @cached_property
    def differences(self) -> "pd.DataFrame":
        """Modules of two models: one row per module, with `status` and what differs in words.

        Identical layers are one row. A row has the module of both models where one is the other's:
        by path, or by structure and order where names differ.

        Raises:
            InvalidValue: the report has no second model.
        """
        from llmsim_magic.views.tables.differences import differences_table

        return differences_table(self.trace, self._second("differences").trace)

    def _second(self, what: str) -> "ReportTables":
        if self.compared is None:
            raise InvalidValue(
                f"{what} is not available: request a second model with --compare MODEL"
            )
        return self.compared

    def _times(self, level: Level) -> "tuple[OperatorTime, ...] | None":
        """The time of each operator on the first device; None without one, or for kernels."""
        has_times = self.costing.devices and level != "kernel"
        return self.costing.operator_times if has_times else None

    def _selection(self, depth: int | None, layers: Unfolded, level: Level | None) -> Selection:
        asked = self.selection
        return Selection(
            asked.depth if depth is None else depth,
            asked.layers if layers == () else layers,
            level or asked.level,
        )
