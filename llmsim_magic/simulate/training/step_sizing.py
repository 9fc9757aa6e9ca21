"""The devices that hold a training step, the largest step on each, and how fast it is there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import Cancelled, LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import ZERO_STAGES
from llmsim_magic.records.trace.workload import TRAIN, IsCancelled, Workload
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import DevicePasses
from llmsim_magic.simulate.hardware.executions import (
    gap_notes,
    require_executions,
    require_executions_here,
)
from llmsim_magic.simulate.hardware.link_notes import link_notes
from llmsim_magic.simulate.models.recipes import Progress
from llmsim_magic.simulate.request import ALL, Deployment
from llmsim_magic.simulate.training.step_on_device import rebuilt, step_on
from llmsim_magic.views.tables.step_alternatives import StepOnDevice, StepSize

_DATA_PARALLEL = (2, 4, 8, 16, 32, 64)
_STAGES = ZERO_STAGES[1:]


@dataclass
class StepSizing:
    """Sizes a training step on devices, which share its traces.

    Attributes:
        planner: traces the step and larger ones.
        setup: batch, context and parallel layout.
        deployment: devices and launch.
    """

    planner: CapacityPlanner
    setup: Setup
    deployment: Deployment
    _sharded: dict[tuple[int, int], CapacityPlanner | None] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def trace(self) -> Trace:
        """The step as it was asked for."""
        return self.planner.tracer(self.setup.parallel)(self._workload)

    @property
    def _workload(self) -> Workload:
        return Workload(TRAIN, self.setup.batch, self.setup.context)

    @cached_property
    def _passes(self) -> DevicePasses:
        names = self.deployment.hardware
        if ALL in names:
            names = tuple(accelerators.entries())
        for name in names:
            require_executions_here(self.deployment, name, trains=True)
        return DevicePasses((self.trace,), replace(self.deployment, hardware=names), self.planner)

    def sizes(self, progress: Progress, cancelled: IsCancelled) -> Iterator[StepSize]:
        """Each device on which the step is predicted.

        Args:
            progress: called with a message before each device and trace.
            cancelled: polled between devices and inside traces.

        Raises:
            LlmsimError: the step cannot be traced, or no device executes it.
            Cancelled: `cancelled` returned True.
        """
        with self.planner.reporting(progress, cancelled):
            self.planner.require_context(self.setup)
            require_executions(self.deployment, self.trace, None)
            devices = self._passes.devices
            for place, (device, _) in enumerate(devices):
                if cancelled():
                    raise Cancelled(f"size: cancelled after {place} devices")
                progress(f"device {place + 1} of {len(devices)}: {device.name}")
                if ALL not in self.deployment.hardware:
                    require_executions(self.deployment, self.trace, device)
                try:
                    row = step_on(self.planner, self.setup, self._passes, place)
                    size = None if row is None else self._size(row, device)
                except KeyboardInterrupt:
                    if cancelled():
                        raise Cancelled(f"size: cancelled after {place} devices") from None
                    raise
                if size is not None:
                    yield size

    def notes(self, sizes: Iterable[StepSize]) -> tuple[str, ...]:
        """Why figures are missing, searches that stopped early, and what is not predicted."""
        devices = [device for device, _ in self._passes.devices]
        reasons: dict[str, list[str]] = {}
        refused: dict[str, list[str]] = {}
        for size in sizes:
            if size.step.refusal is not None:
                refused.setdefault(size.step.refusal, []).append(size.step.device)
            for reason in size.missing(self._most_devices):
                reasons.setdefault(reason, []).append(size.step.device)
        return (
            *(f"no time on {', '.join(names)}: {why}" for why, names in refused.items()),
            *(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()),
            *dict.fromkeys(self.planner.notes),
            *gap_notes(self.deployment, self.trace, devices),
            *link_notes(self.trace, devices),
        )

    def _size(self, row: StepOnDevice, device: Accelerator) -> StepSize:
        runtime = row.runtime
        if row.refusal is not None:
            return StepSize(step=row, largest_micro_batch=None, longest_context=None, sharded=None)
        batch = self.planner.largest_batch(self.setup, device, runtime)
        training = self.planner.build.training
        micro_batches = 1 if training is None else training.accumulate
        return StepSize(
            step=row if row.fits is not False else replace(row, time=None),
            largest_micro_batch=None if batch is None else batch // micro_batches,
            longest_context=self.planner.longest_context(self.setup, device, runtime),
            sharded=self._fewest_devices(device, runtime) if row.fits is False else None,
        )

    def _fewest_devices(self, device: Accelerator, runtime: str) -> tuple[int, int] | None:
        """The fewest devices that hold the step by data parallelism, and the lowest stage of ZeRO.

        Of powers of two; stage 3 needs the least, and the more devices the less.
        """
        counts = self._counts
        if not counts or not self._holds(counts[-1], 3, device, runtime):
            return None
        low, high = 0, len(counts) - 1
        while low < high:
            middle = (low + high) // 2
            if self._holds(counts[middle], 3, device, runtime):
                high = middle
            else:
                low = middle + 1
        devices = counts[low]
        stages = (each for each in _STAGES if self._holds(devices, each, device, runtime))
        return devices, next(stages)

    @property
    def _counts(self) -> Sequence[int]:
        """Numbers of devices that may share the step."""
        training = self.planner.build.training
        return [each for each in _DATA_PARALLEL if training is None or each > training.dp]

    @property
    def _most_devices(self) -> int | None:
        """The most devices that were tried; None if the step cannot be sharded over more."""
        if not self._counts or self._sharded.get((self._counts[-1], _STAGES[-1])) is None:
            return None
        return self._counts[-1]

    def _holds(self, devices: int, stage: int, device: Accelerator, runtime: str) -> bool:
        key = devices, stage
        if key not in self._sharded:
            self._sharded[key] = self._planner(devices, stage)
        planner = self._sharded[key]
        if planner is None:
            return False
        found = planner.fit(self.setup, device, runtime, remedies=False)
        return found is not None and found.fits

    def _planner(self, devices: int, stage: int) -> CapacityPlanner | None:
        """A planner of the step on so many devices; None if it cannot be sharded so."""
        build = self.planner.build
        if build.training is None:
            return None
        training = replace(build.training, dp=devices, zero=stage)
        try:
            found = rebuilt(self.planner, replace(build, training=training))
            found.tracer(self.setup.parallel)(self._workload)
        except Cancelled:
            raise
        except LlmsimError:
            return None
        return found
