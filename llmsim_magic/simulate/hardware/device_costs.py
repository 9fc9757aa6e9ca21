"""What passes of a model take and need on the devices that are asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.analyses.parallel.shards import shards
from llmsim_magic.analyses.time.latency import NOT_MODELLED, PassTime, latency
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
from llmsim_magic.simulate.request import ALL, LOCAL, Deployment
from llmsim_magic.views.plots.plot import Plot
from llmsim_magic.views.plots.roofline_plot import roofline_plot
from llmsim_magic.views.safe_files import write_file
from llmsim_magic.views.tables import memory_tables, time_tables
from llmsim_magic.views.tables.costs import costs_table
from llmsim_magic.views.tables.record_tables import layers_table

if TYPE_CHECKING:
    import pandas as pd


def device_of(name: str) -> tuple[Accelerator, Calibration | None]:
    """A device of the catalogue, or this machine with what its measurement found."""
    return local() if name == LOCAL else (accelerators.find(name), None)


@dataclass(frozen=True)
class DeviceCosts:
    """Times and bytes of passes; the first of `traces` is the one that single tables show."""

    traces: tuple[Trace, ...]
    deployment: Deployment
    planner: CapacityPlanner | None = None
    _times: dict[tuple[int, str], PassTime] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def devices(self) -> tuple[tuple[Accelerator, Calibration | None], ...]:
        """Each device asked for, with what this machine's own measurement found of it."""
        return tuple(device_of(name) for name in self.deployment.hardware if name != ALL)

    @property
    def can_fit(self) -> bool:
        """Whether `fits` can be asked: on devices, of a model that has workloads."""
        return bool(self.devices) and self.planner is not None

    @property
    def first(self) -> str:
        """The name of the device that single tables tell of."""
        return self.devices[0][0].name

    def time(self, trace: Trace, place: int = 0) -> PassTime:
        """The time of a pass on one of the devices asked for."""
        return self.time_on(trace, *self.devices[place])

    def time_on(
        self, trace: Trace, device: Accelerator, calibration: Calibration | None = None
    ) -> PassTime:
        """The time of a pass on a device; of a model in stages, that of all stages."""
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
        is_eager = self.deployment.launch == "eager" or device.kind == "cpu"  # it is its own host
        regime: Regime = "eager" if is_eager else "graph"
        return latency(trace, device, calibration, regime=regime, stored=stored)

    def _stages(self, trace: Trace) -> Sequence[Trace]:
        parallel = trace.model.parallel
        if parallel.pp == 1 or self.planner is None:
            return (trace,)
        return self.planner.stages(parallel, trace.workload)

    @cached_property
    def passes(self) -> tuple[tuple[Trace, PassTime], ...]:
        """Each pass with its time on each device."""
        places = range(len(self.devices))
        return tuple((trace, self.time(trace, place)) for place in places for trace in self.traces)

    @cached_property
    def latency(self) -> "pd.DataFrame":
        """One row for each device and pass: seconds, tokens per second, and what binds."""
        return time_tables.latency_table(self.passes)

    @cached_property
    def times(self) -> "pd.DataFrame":
        """One row for each operator of the first pass on the first device."""
        trace = self.traces[0]
        return time_tables.times_table(trace, self._first_stage)

    @cached_property
    def layers(self) -> "pd.DataFrame":
        """One row for each layer of the first pass; with its time on the first device, if any."""
        trace = self.traces[0]
        table = layers_table(trace)
        if not self.devices:
            return table
        found = time_tables.layer_times_table(trace, self._first_stage)
        return table.join(found.drop(columns=["path", "layer", "operators"]))

    @cached_property
    def types(self) -> "pd.DataFrame":
        """One row for each type of operator, with its time where a device is asked for."""
        return costs_table(self.traces[0], self._first_stage if self.devices else None)

    @cached_property
    def roofline(self) -> Plot:
        """The operators of the first pass below the roof of the first device."""
        return roofline_plot(self.traces[0], self._first_stage)

    @cached_property
    def _first_stage(self) -> PassTime:
        """The time of the operators that the first trace has."""
        return self._time(self.traces[0], *self.devices[0])

    @property
    def events(self) -> str:
        """The first pass on the first device as Chrome's trace events, in JSON."""
        return json.dumps(chrome_trace(self.traces[0], self._first_stage))

    def timeline(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `events` for Perfetto; raises `InvalidValue` and `NotOurs`."""
        return write_file(path, self.events.encode(), overwrite=overwrite)

    @cached_property
    def memory(self) -> "pd.DataFrame":
        """One row for each part of what a device holds, of the one that holds the most."""
        return memory_tables.memory_table(self.needed)

    @property
    def _runtime(self) -> Runtime:
        """What serves the model on the first device."""
        return runtimes.find("vllm", self.devices[0][0].memory_bytes if self.devices else None)

    @cached_property
    def ranks(self) -> "pd.DataFrame":
        """One row for each stage: the memory of each of its ranks; one row for a model in one."""
        if self.planner is None:
            memories = [self.needed]
        else:
            memories = self.planner.by_stage(self.setup, self._runtime)
        return memory_tables.ranks_table({f"stage {n}": each for n, each in enumerate(memories)})

    @cached_property
    def collectives(self) -> "pd.DataFrame":
        """One row for each exchange between devices in the first pass."""
        return memory_tables.collectives_table(self.traces[0])

    @cached_property
    def shards(self) -> "pd.DataFrame":
        """One row for each parameter: how it is split, and what the first pass's rank holds."""
        trace = self.traces[0]
        whole = trace if self.planner is None else self.planner.tracer(Parallel())(trace.workload)
        return memory_tables.shards_table(shards(whole, trace))

    @cached_property
    def needed(self) -> Memory:
        """What each device holds, with the allowance that a runtime takes on the first."""
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
        """The first pass as something to fit."""
        trace = self.traces[0]
        return Setup(
            trace.workload.batch,
            trace.workload.context,
            trace.model.parallel,
            self.deployment.weight_dtype,
            self.deployment.kv_dtype,
        )

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """One row for each device: whether it fits, what would make it, and how far it goes."""
        if self.planner is None:
            raise LlmsimError("fits: a module with inputs of its own has no batch and context")
        found = [self.planner.fit(self.setup, device) for device, _ in self.devices]
        table = memory_tables.sizing_table(found)
        known = [device for device, _ in self.devices if device.memory_bytes is not None]
        planner, setup = self.planner, self.setup
        table["largest_batch"] = [planner.largest_batch(setup, device) for device in known]
        table["longest_context"] = [planner.longest_context(setup, device) for device in known]
        return table

    def remarks(self) -> tuple[str, ...]:
        """What every prediction leaves out, in a sentence."""
        return (NOT_MODELLED,) if self.devices else ()
