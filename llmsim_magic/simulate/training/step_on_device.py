"""A training step on a device: the bytes that it needs there, and how long it takes."""

from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.catalog import runtimes
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.workload import TRAIN, Workload
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import DevicePasses
from llmsim_magic.simulate.hardware.executions import executions_on
from llmsim_magic.simulate.models.recipes import rebuilt_recipe
from llmsim_magic.simulate.request import Build
from llmsim_magic.views.tables.step_alternatives import StepOnDevice


def rebuilt(planner: CapacityPlanner, build: Build) -> CapacityPlanner:
    """A planner of the same model, built and trained in another way.

    It reports traces, and stops them, as `planner` does now.

    Raises:
        InvalidValue: the model cannot be built so.
    """
    if build == planner.build:
        return planner
    found = CapacityPlanner(planner.model, build)
    found.progress, found.cancelled = planner.progress, planner.cancelled
    known = next(iter(planner.recipes.values()), None)
    if known is not None:
        found.recipes[build.parallel] = rebuilt_recipe(known, planner.model, build)
    return found


def step_on(
    planner: CapacityPlanner, setup: Setup, passes: DevicePasses, place: int, change: str = ""
) -> StepOnDevice | None:
    """A training step on a device; None where nothing that executes it there is predicted.

    Launched eagerly, as training loops are, unless the deployment names a launch.

    Args:
        planner: traces the step.
        setup: its batch and context, and the parallel layout.
        passes: the step with the devices.
        place: the index of the device.
        change: what was changed of the step that was asked for, in words.

    Raises:
        LlmsimError: the step cannot be traced, or its memory not be predicted.
    """
    device, calibration = passes.devices[place]
    trace = planner.tracer(setup.parallel)(Workload(TRAIN, setup.batch, setup.context))
    execution = next(iter(executions_on(passes.deployment, trace, device)), None)
    if execution is None:
        return None
    runtime = runtimes.on(execution.runtime, device)
    memory = max(planner.by_stage(setup, runtime), key=lambda found: found.required)
    time, error = None, ""
    try:
        time = passes.time_on(trace, device, calibration, execution)
    except LlmsimError as found:  # as of a device that does not compute in the dtype
        error = str(found)
    return StepOnDevice(
        trace=trace,
        device=device.name,
        execution=execution,
        memory=memory,
        usable=None if device.memory_bytes is None else runtime.usable_bytes(device.memory_bytes),
        time=time,
        change=change,
        error=error,
        refusal=refusal(trace, device),
    )
