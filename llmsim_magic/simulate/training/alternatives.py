"""What would make a training step fit its devices, or run faster: each alternative traced."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.records.errors import Cancelled, LlmsimError, RecursiveTrace
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import TRAIN, Workload
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import AnyCalibration, DevicePasses
from llmsim_magic.simulate.hardware.executions import executions_on
from llmsim_magic.simulate.request import Deployment
from llmsim_magic.simulate.training.changes import Change, changes
from llmsim_magic.simulate.training.step_on_device import kept_step_on, rebuilt, step_on
from llmsim_magic.views.tables.step_alternatives import (
    StepOnDevice,
    alternatives_table,
    cheapest_first,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Alternatives:
    """A training step as it was asked for, and with changes, on each device.

    Attributes:
        rows: by device, the cheapest that fits first.
        notes: changes that the model does not support, with the reason.
    """

    rows: tuple[StepOnDevice, ...]
    notes: tuple[str, ...]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per device and change."""
        return alternatives_table(self.rows)


def alternatives(planner: CapacityPlanner, trace: Trace, deployment: Deployment) -> Alternatives:
    """Trace a training step with each change that its options leave open.

    Several changes together are traced only where a device does not hold the step.

    Args:
        planner: traces the step as it was asked for.
        trace: the step.
        deployment: devices and launch.

    Raises:
        LlmsimError: the step has no memory that is predicted, or nothing executes it.
        Cancelled: the planner's `cancelled` returned True.
    """
    workload = trace.workload
    setup = Setup(
        phase=TRAIN,
        batch=workload.batch,
        context=workload.context,
        parallel=planner.build.parallel,
    )
    passes = DevicePasses((trace,), deployment, planner)
    devices = [each for each in passes.devices if executions_on(deployment, trace, each[0])]
    found = list(_steps(planner, setup, deployment, devices))
    notes: list[str] = []
    for change in _changes(planner, trace, found):
        if planner.cancelled():
            raise _cancelled(trace)
        planner.progress(f"alternative: {change.name}")
        try:
            other = rebuilt(planner, change.build)
            steps = _steps(other, setup, deployment, devices)
            found += [replace(row, change=change.name) for row in steps]
        except (Cancelled, RecursiveTrace):
            raise
        except KeyboardInterrupt:
            if planner.cancelled():
                raise _cancelled(trace) from None
            raise
        except LlmsimError as error:
            notes.append(f"no alternative with {change.name}: {error}")
    names = dict.fromkeys(row.device for row in found)
    ordered = [
        row for name in names for row in cheapest_first(r for r in found if r.device == name)
    ]
    return Alternatives(tuple(ordered), tuple(notes))


def _cancelled(trace: Trace) -> Cancelled:
    return Cancelled(f"{trace.model.name}: cancelled before every alternative was traced")


def _changes(
    planner: CapacityPlanner, trace: Trace, as_asked: Sequence[StepOnDevice]
) -> tuple[Change, ...]:
    """Every change that the options leave open; combined ones where a device does not hold it."""
    dtypes = {each.dtype for each in trace.parameters if not each.is_buffer}
    known = next(iter(planner.recipes.values()), None)
    return changes(
        planner.build,
        trace.workload,
        "float32" if "float32" in dtypes else trace.model.dtype,
        combined=any(row.fits is False and row.refusal is None for row in as_asked),
        refused=any(row.refusal is not None for row in as_asked),
        is_live=known is not None and known.meta_model is not None,
    )


def _steps(
    planner: CapacityPlanner,
    setup: Setup,
    deployment: Deployment,
    devices: Sequence[tuple[Accelerator, AnyCalibration]],
) -> Iterator[StepOnDevice]:
    """A step on each device; those of the catalogue from the disk if they are there."""

    @cache
    def passes() -> DevicePasses:
        trace = planner.tracer(setup.parallel)(Workload(TRAIN, setup.batch, setup.context))
        return DevicePasses((trace,), deployment, planner)

    for device, calibration in devices:
        if calibration is None:
            row = kept_step_on(planner, setup, deployment, passes, device)
        else:  # measured, which may give another answer each time
            row = step_on(planner, setup, passes(), passes().names.index(device.name))
        if row is not None:
            yield row
