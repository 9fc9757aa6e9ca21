"""Times of passes and training steps on devices, under each execution that is predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.calibration import Calibration
from llmsim_magic.records.hardware.execution import EXECUTIONS, Execution
from llmsim_magic.records.hardware.torch_kernel import TorchCalibration
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.hardware.executions import executions_on, require_executions
from llmsim_magic.simulate.hardware.refused_dtype import require_dtype
from llmsim_magic.simulate.request import ALL, MEASURED, Deployment

if TYPE_CHECKING:
    from llmsim_magic.analyses.time.pass_time import PassTime
    from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner

# Constants of an engine's kernels or a CPU's, or those of PyTorch's kernels on a GPU.
AnyCalibration = Calibration | TorchCalibration | None


def device_of(name: str) -> tuple[Accelerator, AnyCalibration]:
    """A device by name; one of this machine has its measured calibration."""
    if name not in MEASURED:
        return accelerators.find(name), None
    from llmsim_magic.simulate.hardware.local_device import local

    return local(name)


@dataclass(frozen=True)
class DevicePasses:
    """Passes on devices: what executes them there, and how long they take.

    Attributes:
        traces: the passes.
        deployment: devices, stored dtypes, runtime and launch.
        planner: traces further setups; None for a module that was traced on given inputs.
    """

    traces: tuple[Trace, ...]
    deployment: Deployment
    planner: "CapacityPlanner | None" = None
    _times: "dict[tuple[Workload, str, Execution], PassTime]" = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def devices(self) -> tuple[tuple[Accelerator, AnyCalibration], ...]:
        """Each requested device once, with its calibration if it is one of this machine."""
        found = (device_of(name) for name in self.deployment.hardware if name != ALL)
        return tuple({device.name: (device, own) for device, own in found}.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the devices."""
        return tuple(device.name for device, _ in self.devices)

    @property
    def _first_device(self) -> Accelerator | None:
        return self.devices[0][0] if self.devices else None

    @property
    def _first_place(self) -> int:
        """The index of the first device with a predicted time, which tables of one describe."""
        return next(place for place in range(len(self.devices)) if self.executions(place))

    @property
    def first(self) -> str:
        """The name of the device that tables of one device describe."""
        return self.devices[self._first_place][0].name

    def executions(self, place: int | None = None) -> tuple[Execution, ...]:
        """What executes the passes on a device, as far as times are predicted.

        Args:
            place: the index of the device; the one that tables of one device describe if None.

        Raises:
            LlmsimError: no time is predicted on any device.
        """
        outcomes = self._outcomes[self._first_place if place is None else place]
        return tuple(each for each, error in outcomes.items() if error is None)

    @property
    def all_executions(self) -> tuple[Execution, ...]:
        """What executes the passes on any of the devices, in the order of `EXECUTIONS`."""
        found = {each for place in range(len(self.devices)) for each in self.executions(place)}
        return tuple(each for each in EXECUTIONS if each in found)

    @cached_property
    def _outcomes(self) -> tuple[dict[Execution, LlmsimError | None], ...]:
        """For each device the executions, with the error of one whose times cannot be predicted."""
        found = tuple(self._outcomes_on(*device) for device in self.devices)
        errors = [error for outcomes in found for error in outcomes.values()]
        if errors and all(errors):
            raise next(filter(None, errors))
        return found

    def _outcomes_on(
        self, device: Accelerator, calibration: AnyCalibration
    ) -> dict[Execution, LlmsimError | None]:
        require_executions(self.deployment, self.traces[0], device)
        found: dict[Execution, LlmsimError | None] = {}
        for execution in executions_on(self.deployment, self.traces[0], device):
            try:
                for trace in self.traces:
                    self.time_on(trace, device, calibration, execution)
            except LlmsimError as error:
                found[execution] = error
            else:
                found[execution] = None
        return found

    @property
    def first_execution(self) -> Execution:
        """The first execution on that device, which tables of one execution describe."""
        return self.executions()[0]

    def time_on(
        self, trace: Trace, device: Accelerator, calibration: AnyCalibration, execution: Execution
    ) -> "PassTime":
        """The time of a pass on a device under an execution, summed over pipeline stages.

        Raises:
            RefusedDtype: the device does not compute in the dtype of the pass.
            LlmsimError: the time cannot be predicted.
        """
        key = (trace.workload, device.name, execution)
        if key not in self._times:
            require_dtype(trace, device, self.planner)
            stages = [
                self._time(stage, device, calibration, execution) for stage in self._stages(trace)
            ]
            from llmsim_magic.analyses.time.pass_time import joined

            self._times[key] = joined(stages)
        return self._times[key]

    def _time(
        self, trace: Trace, device: Accelerator, calibration: AnyCalibration, execution: Execution
    ) -> "PassTime":
        from llmsim_magic.analyses.time.latency import latency
        from llmsim_magic.analyses.time.stored_dtypes import stored_dtypes
        from llmsim_magic.analyses.torch_time.transformers_time import transformers_time

        stored = stored_dtypes(
            trace, device, self.deployment.weight_dtype, self.deployment.kv_dtype
        )
        of_torch = calibration if isinstance(calibration, TorchCalibration) else None
        known = calibration if isinstance(calibration, Calibration) else None
        if execution.runtime == "vllm":
            return latency(trace, device, known, stored=stored)
        if device.kind == "cpu":
            return latency(trace, device, known, regime="eager", stored=stored)
        return transformers_time(trace, device, execution.launch, of_torch, stored=stored)

    def _stages(self, trace: Trace) -> Sequence[Trace]:
        parallel = trace.model.parallel
        if parallel.pp == 1 or self.planner is None:
            return (trace,)
        return self.planner.stages(parallel, trace.workload)

    @cached_property
    def passes(self) -> "tuple[tuple[Trace, PassTime], ...]":
        """Every pass on every device under every execution, with its time."""
        return tuple(
            (trace, self.time_on(trace, device, calibration, execution))
            for place, (device, calibration) in enumerate(self.devices)
            for execution in self.executions(place)
            for trace in self.traces
        )

    @property
    def first_passes(self) -> "tuple[tuple[Trace, PassTime], ...]":
        """Every pass on each device under the first execution there."""
        first = {
            device.name: self.executions(place)[:1]
            for place, (device, _) in enumerate(self.devices)
        }
        return tuple(
            (trace, time)
            for trace, time in self.passes
            if time.execution in first[time.accelerator.name]
        )

    @cached_property
    def _first_stages(self) -> "tuple[PassTime, ...]":
        """The first pass on that device by execution, without further pipeline stages."""
        device, calibration = self.devices[self._first_place]
        return tuple(
            self._time(self.traces[0], device, calibration, execution)
            for execution in self.executions()
        )

    @property
    def first_stage(self) -> "PassTime":
        """The time of the first pass under `first_execution`, of the pipeline stage it traces."""
        return self._first_stages[0]
