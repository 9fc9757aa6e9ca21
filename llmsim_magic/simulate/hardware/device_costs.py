"""Tables and plots of the time and memory of passes and training steps on the requested devices."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.analyses.engine.engine_trace import engine_notes
from llmsim_magic.analyses.memory.memory import Memory, memory
from llmsim_magic.catalog import runtimes
from llmsim_magic.records.hardware.execution import runtimes_of
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.simulate.hardware.device_fits import DeviceFits
from llmsim_magic.simulate.hardware.executions import (
    gap_notes,
    memory_runtimes,
    require_executions,
)
from llmsim_magic.simulate.hardware.link_notes import link_notes
from llmsim_magic.views.safe_files import write_file

if TYPE_CHECKING:
    import pandas as pd

    from llmsim_magic.analyses.time.pass_time import OperatorTime
    from llmsim_magic.views.plots.plot import Plot


@dataclass(frozen=True)
class DeviceCosts(DeviceFits):
    """Tables and plots of passes on devices. Those of one pass describe `traces[0]`."""

    @cached_property
    def latency(self) -> "pd.DataFrame":
        """One row per device, execution and pass: seconds with their band, tokens/s, the bound."""
        from llmsim_magic.views.tables.times import latency_table

        return latency_table(self.passes, self.passes_fit)

    @property
    def ranked_latency(self) -> "pd.DataFrame":
        """`latency` by workload, what fits first, the fastest first."""
        workloads = {str(trace.workload): rank for rank, (trace, _) in enumerate(self.passes)}
        ranks = [workloads[str(trace.workload)] for trace, _ in self.passes]
        table = self.latency.assign(rank=ranks, misfit=[fit is False for fit in self.passes_fit])
        ranked = table.sort_values(["rank", "misfit", "time_s"], kind="stable")
        return ranked.drop(columns=["rank", "misfit"])

    @cached_property
    def times(self) -> "pd.DataFrame":
        """One row per operator of the first pass and execution: seconds on the first device."""
        from llmsim_magic.views.tables.times import times_table

        return times_table(self.traces[0], self._first_stages)

    @cached_property
    def operators(self) -> "pd.DataFrame":
        """`ops` of the first pass with its time under `first_execution`, share and bottleneck."""
        from llmsim_magic.views.tables.times import timed_operators_table

        return timed_operators_table(self.traces[0], self.first_stage)

    @cached_property
    def layers(self) -> "pd.DataFrame":
        """One row per layer of the first pass, with seconds under `first_execution` if any."""
        from llmsim_magic.views.tables import times as time_tables
        from llmsim_magic.views.tables.engine_costs import with_engine_costs
        from llmsim_magic.views.tables.modules import layers_table

        trace = self.traces[0]
        table = layers_table(trace)
        if not self.devices:
            return table
        orders = list(time_tables.orders_by_layer(trace).values())
        table = with_engine_costs(table, orders, self.first_stage)
        found = time_tables.layer_times_table(trace, self.first_stage)
        return table.join(found.drop(columns=["path", "layer", "operators"]))

    @cached_property
    def types(self) -> "pd.DataFrame":
        """One row per type of operator, with its seconds under `first_execution` if any."""
        from llmsim_magic.views.tables.costs import costs_table

        return costs_table(self.traces[0], self.first_stage if self.devices else None)

    @cached_property
    def roofline(self) -> "Plot":
        """Roofline plot: the operators of the first pass under `first_execution`."""
        from llmsim_magic.views.plots.roofline_plot import roofline_plot

        return roofline_plot(self.traces[0], self.first_stage)

    @property
    def operator_times(self) -> "tuple[OperatorTime, ...]":
        """The time of each operator of the first pass under `first_execution`."""
        return self.first_stage.operators

    @property
    def events(self) -> str:
        """The first pass under `first_execution` as Chrome trace events, in JSON."""
        from llmsim_magic.analyses.time.perfetto import chrome_trace

        return json.dumps(chrome_trace(self.traces[0], self.first_stage))

    def timeline(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `events` to a file that Perfetto and chrome://tracing open.

        Args:
            path: the JSON file.
            overwrite: replace a file that llmsim_magic did not write.

        Returns:
            The path that was written.

        Raises:
            InvalidValue: the file cannot be written.
            OverwriteRefused: another program wrote or changed the file.
        """
        return write_file(path, self.events.encode(), overwrite=overwrite)

    @cached_property
    def memory(self) -> "pd.DataFrame":
        """One row per runtime and part of device memory, on the rank that needs the most. Bytes."""
        from llmsim_magic.views.tables.memory import memory_table

        return memory_table(self.memories)

    @cached_property
    def memory_plot(self) -> "Plot":
        """Plot of the memory of a training step over time, by category."""
        from llmsim_magic.views.plots.memory_plot import memory_plot

        return memory_plot(self.traces[0])

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes whose memory is shown.

        Raises:
            InvalidValue: the deployment leaves none that is predicted.
        """
        require_executions(self.deployment, self.traces[0], self._first_device)
        return memory_runtimes(self.deployment, self.traces[0], self._first_device)

    @cached_property
    def ranks(self) -> "pd.DataFrame":
        """One row per runtime and pipeline stage: the memory of one of its ranks. Bytes."""
        from llmsim_magic.views.tables.memory import ranks_table

        return ranks_table({name: self._by_stage(name) for name in self.runtimes})

    @cached_property
    def collectives(self) -> "pd.DataFrame":
        """One row per collective between devices in the first pass."""
        from llmsim_magic.views.tables.memory import collectives_table

        return collectives_table(self.traces[0])

    @cached_property
    def shards(self) -> "pd.DataFrame":
        """One row per parameter: how it is split, and the shard that the traced rank holds."""
        from llmsim_magic.analyses.parallel.shards import shards
        from llmsim_magic.views.tables.memory import shards_table

        trace = self.traces[0]
        whole = trace if self.planner is None else self.planner.tracer(Parallel())(trace.workload)
        return shards_table(shards(whole, trace))

    @cached_property
    def memories(self) -> dict[str, Memory]:
        """By runtime, the memory of the rank that needs the most.

        Raises:
            InvalidValue: a runtime that is not predicted, or a context that is too long.
        """
        if self.planner is not None:
            self.planner.require_context(self.setup)
        return {
            name: max(self._by_stage(name), key=lambda found: found.required)
            for name in self.runtimes
        }

    @property
    def first_memory(self) -> tuple[str, Memory]:
        """The first runtime, and the memory under it."""
        return next(iter(self.memories.items()))

    def _by_stage(self, runtime: str) -> list[Memory]:
        """The memory of one rank of each pipeline stage: of this pass under transformers.

        An engine holds what the largest pass of the setup takes: it reads prompts in chunks, and
        samples.
        """
        own = runtimes.on(runtime, self._first_device)
        if runtime == "vllm" and self.planner is not None:
            return self.planner.by_stage(self.setup, own)
        found = [
            memory(
                stage,
                weight_dtype=self.deployment.weight_dtype,
                kv_dtype=self.deployment.kv_dtype,
                runtime=own,
            )
            for stage in self._stages(self.traces[0])
        ]
        if self._first_device is not None and self._first_device.kind == "cpu":
            # A CPU's allocator keeps no segments.
            found = [replace(each, segments=None) for each in found]
        return found

    def remarks(self) -> tuple[str, ...]:
        """What is not predicted and why, and what an engine runs otherwise than the model does."""
        if not self.devices:
            return ()
        from llmsim_magic.analyses.time.latency import NOT_MODELLED, NOT_MODELLED_OF_A_STEP

        trace = self.traces[0]
        searches = self.planner.notes if self.planner is not None else ()
        devices = [device for device, _ in self.devices]
        notes = engine_notes(trace) if "vllm" in runtimes_of(self.all_executions) else ()
        return (
            *searches,
            *gap_notes(self.deployment, trace, devices),
            *link_notes(trace, devices),
            *(
                f"no rows of {execution} on {device.name}: {error}"
                for device, outcomes in zip(devices, self._outcomes, strict=True)
                for execution, error in outcomes.items()
                if error is not None
            ),
            *(f"vLLM: {note}" for note in notes),
            *self._unpriced_widening(),
            NOT_MODELLED if trace.training is None else NOT_MODELLED_OF_A_STEP,
        )

    def _unpriced_widening(self) -> tuple[str, ...]:
        """A note on stored weights that a library's kernels widen, which were not measured."""
        is_packed = self.deployment.weight_dtype or self.traces[0].model.quantisation
        if not is_packed or "transformers" not in runtimes_of(self.all_executions):
            return ()
        return (
            "transformers: stored weights are priced by the bytes that they are read in; the "
            "kernels of a quantisation library that widen them were not measured",
        )
