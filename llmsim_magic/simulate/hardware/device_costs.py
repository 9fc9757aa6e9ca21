"""Time and memory of forward passes on the requested devices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.analyses.engine.engine_trace import engine_notes
from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.parallel.shards import shards
from llmsim_magic.analyses.time.latency import NOT_MODELLED, latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.perfetto import chrome_trace
from llmsim_magic.analyses.time.stored_dtypes import stored_dtypes
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration, Regime
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.local_device import local
from llmsim_magic.simulate.request import ALL, MEASURED, Deployment
from llmsim_magic.views.plots.plot import Plot
from llmsim_magic.views.plots.roofline_plot import roofline_plot
from llmsim_magic.views.safe_files import write_file
from llmsim_magic.views.tables import memory as memory_tables
from llmsim_magic.views.tables import times as time_tables
from llmsim_magic.views.tables.costs import costs_table
from llmsim_magic.views.tables.modules import layers_table

if TYPE_CHECKING:
    import pandas as pd


def device_of(name: str) -> tuple[Accelerator, Calibration | None]:
    """A device by name; one of this machine has its measured calibration."""
    return local(name) if name in MEASURED else (accelerators.find(name), None)


@dataclass(frozen=True)
class DeviceCosts:
    """Time and memory of passes on devices. Tables of one pass describe `traces[0]`.

    Attributes:
        traces: the passes.
        deployment: devices, stored dtypes and kernel launch.
        planner: traces further setups; None for a module that was traced on given inputs.
    """

    traces: tuple[Trace, ...]
    deployment: Deployment
    planner: CapacityPlanner | None = None
    _times: dict[tuple[int, str], PassTime] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def devices(self) -> tuple[tuple[Accelerator, Calibration | None], ...]:
        """Each requested device once, with its calibration if it is one of this machine."""
        found = (device_of(name) for name in self.deployment.hardware if name != ALL)
        return tuple({device.name: (device, own) for device, own in found}.values())

    @property
    def can_fit(self) -> bool:
        """Whether `fits` is available: it needs a device and a model with batch and context."""
        return bool(self.devices) and self.planner is not None

    @property
    def first(self) -> str:
        """The name of the first device, which tables of one device describe."""
        return self.devices[0][0].name

    def time(self, trace: Trace, place: int = 0) -> PassTime:
        """The time of a pass on the device at index `place`."""
        return self.time_on(trace, *self.devices[place])

    def time_on(
        self, trace: Trace, device: Accelerator, calibration: Calibration | None = None
    ) -> PassTime:
        """The time of a pass on a device, summed over pipeline stages."""
        key = (id(trace), device.name)
        if key not in self._times:
            stages = [self._time(stage, device, calibration) for stage in self._stages(trace)]
            operators = tuple(operator for stage in stages for operator in stage.operators)
            self._times[key] = replace(stages[0], operators=operators)
        return self._times[key]

    def _time(self, trace: Trace, device: Accelerator, calibration: Calibration | None) -> PassTime:
        stored = stored_dtypes(
            trace, device, self.deployment.weight_dtype, self.deployment.kv_dtype
        )
        is_eager = self.deployment.launch == "eager" or device.kind == "cpu"  # a CPU has no graphs
        regime: Regime = "eager" if is_eager else "graph"
        return latency(trace, device, calibration, regime=regime, stored=stored)

    def _stages(self, trace: Trace) -> Sequence[Trace]:
        parallel = trace.model.parallel
        if parallel.pp == 1 or self.planner is None:
            return (trace,)
        return self.planner.stages(parallel, trace.workload)

    @cached_property
    def passes(self) -> tuple[tuple[Trace, PassTime], ...]:
        """Every pass on every device, with its time."""
        places = range(len(self.devices))
        return tuple((trace, self.time(trace, place)) for place in places for trace in self.traces)

    @cached_property
    def latency(self) -> "pd.DataFrame":
        """One row per device and pass: seconds with their band, tokens/s and the bound."""
        return time_tables.latency_table(self.passes)

    @cached_property
    def times(self) -> "pd.DataFrame":
        """One row per operator of the first pass: its seconds on the first device."""
        trace = self.traces[0]
        return time_tables.times_table(trace, self._first_stage)

    @cached_property
    def layers(self) -> "pd.DataFrame":
        """One row per layer of the first pass, with its seconds on the first device if any."""
        trace = self.traces[0]
        table = layers_table(trace)
        if not self.devices:
            return table
        found = time_tables.layer_times_table(trace, self._first_stage)
        return table.join(found.drop(columns=["path", "layer", "operators"]))

    @cached_property
    def types(self) -> "pd.DataFrame":
        """One row per type of operator, with its seconds on the first device if any."""
        return costs_table(self.traces[0], self._first_stage if self.devices else None)

    @cached_property
    def roofline(self) -> Plot:
        """Roofline plot: the operators of the first pass on the first device."""
        return roofline_plot(self.traces[0], self._first_stage)

    @cached_property
    def _first_stage(self) -> PassTime:
        """The time of the first pass, without further pipeline stages."""
        return self._time(self.traces[0], *self.devices[0])

    @property
    def events(self) -> str:
        """The first pass on the first device as Chrome trace events, in JSON."""
        return json.dumps(chrome_trace(self.traces[0], self._first_stage))

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
        """One row per part of device memory, on the rank that needs the most. Bytes."""
        return memory_tables.memory_table(self.needed)

    @property
    def _runtime(self) -> Runtime:
        """The serving runtime on the first device."""
        return runtimes.find("vllm", self.devices[0][0].memory_bytes if self.devices else None)

    @cached_property
    def ranks(self) -> "pd.DataFrame":
        """One row per pipeline stage: the memory of one of its ranks. Bytes."""
        if self.planner is None:
            memories = [self.needed]
        else:
            memories = self.planner.by_stage(self.setup, self._runtime)
        return memory_tables.ranks_table({f"stage {n}": each for n, each in enumerate(memories)})

    @cached_property
    def collectives(self) -> "pd.DataFrame":
        """One row per collective between devices in the first pass."""
        return memory_tables.collectives_table(self.traces[0])

    @cached_property
    def shards(self) -> "pd.DataFrame":
        """One row per parameter: how it is split, and the shard that the traced rank holds."""
        trace = self.traces[0]
        whole = trace if self.planner is None else self.planner.tracer(Parallel())(trace.workload)
        return memory_tables.shards_table(shards(whole, trace))

    @cached_property
    def needed(self) -> Memory:
        """The memory of the rank that needs the most, with the overhead of the runtime."""
        runtime = self._runtime
        if self.planner is None:
            from llmsim_magic.analyses.memory.memory import memory

            return memory(
                self.traces[0],
                weight_dtype=self.deployment.weight_dtype,
                kv_dtype=self.deployment.kv_dtype,
                runtime=runtime,
            )
        return self.planner.needed(self.setup, runtime)

    @property
    def setup(self) -> Setup:
        """Phase, batch, context, parallel layout and stored dtypes of the first pass."""
        trace = self.traces[0]
        return Setup(
            phase=trace.workload.phase,
            batch=trace.workload.batch,
            context=trace.workload.context,
            parallel=trace.model.parallel,
            weight_dtype=self.deployment.weight_dtype,
            kv_dtype=self.deployment.kv_dtype,
        )

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """One row per device: whether the model fits, remedies, largest batch, longest context.

        Raises:
            LlmsimError: the module was traced on given inputs.
        """
        if self.planner is None:
            raise LlmsimError(
                "fits is not available: a module that was traced on given inputs has no batch "
                "and context to vary"
            )
        found = [self.planner.fit(self.setup, device) for device, _ in self.devices]
        table = memory_tables.capacity_table(found)
        known = [device for device, _ in self.devices if device.memory_bytes is not None]
        planner, setup = self.planner, self.setup
        table["largest_batch"] = [planner.largest_batch(setup, device) for device in known]
        table["longest_context"] = [planner.longest_context(setup, device) for device in known]
        return table

    def remarks(self) -> tuple[str, ...]:
        """Which kernels of an engine a predicted time is for, and what it does not include."""
        if not self.devices:
            return ()
        notes = engine_notes(self.traces[0]) if self.deployment.launch != "eager" else ()
        searches = self.planner.notes if self.planner is not None else ()
        return (*searches, *(f"time: {note}" for note in notes), NOT_MODELLED)
