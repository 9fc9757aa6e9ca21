"""A training step on a device: the bytes that it needs there, and how long it takes."""

from collections.abc import Callable

from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.analyses.torch_time.step_time import utilization
from llmsim_magic.catalog import runtimes
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.workload import TRAIN, Workload
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.hardware.device_passes import DevicePasses
from llmsim_magic.simulate.hardware.executions import executions_on
from llmsim_magic.simulate.models.recipes import rebuilt_recipe
from llmsim_magic.simulate.models.workloads import derived, keep_derived
from llmsim_magic.simulate.request import Build, Deployment
from llmsim_magic.views.tables.step_alternatives import StepOnDevice, StepTime
from llmsim_magic.views.tables.times import main_bottleneck


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
    planner: CapacityPlanner, setup: Setup, passes: DevicePasses, place: int
) -> StepOnDevice | None:
    """A training step on a device; None where nothing that executes it there is predicted.

    Launched eagerly, as training loops are, unless the deployment names a launch.

    Args:
        planner: traces the step.
        setup: its batch and context, and the parallel layout.
        passes: the step with the devices.
        place: the index of the device.

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
        found = passes.time_on(trace, device, calibration, execution)
    except LlmsimError as raised:  # as of a device that does not compute in the dtype
        error = str(raised)
    else:
        time = StepTime(
            seconds=found.seconds,
            low=found.low,
            high=found.high,
            mfu=utilization(trace, found),
            binds=main_bottleneck(found),
        )
    return StepOnDevice(
        device=device.name,
        runtime=execution.runtime,
        launch=execution.launch,
        devices=trace.ranks,
        tokens=tokens_read(trace),
        allocated=memory.allocated,
        required=memory.required,
        usable=None if device.memory_bytes is None else runtime.usable_bytes(device.memory_bytes),
        time=time,
        error=error,
        refusal=refusal(trace, device),
    )


def kept_step_on(
    planner: CapacityPlanner,
    setup: Setup,
    deployment: Deployment,
    passes: Callable[[], DevicePasses],
    device: Accelerator,
) -> StepOnDevice | None:
    """As `step_on`, from the disk if it is there; what is found is kept.

    Args:
        planner: traces the step.
        setup: its batch and context, and the parallel layout.
        deployment: the launch.
        passes: traces the step; called if it is not on the disk.
        device: of the catalogue.

    Raises:
        LlmsimError: the step cannot be traced, or its memory not be predicted.
    """
    recipe = planner.recipes.get(setup.parallel)
    workload = Workload(TRAIN, setup.batch, setup.context)
    what = f"step launched {deployment.launch} on {device!r}"
    found = None if recipe is None else derived(recipe, workload, what, StepOnDevice)
    if found is not None:
        return found
    traced = passes()
    found = step_on(planner, setup, traced, traced.names.index(device.name))
    if recipe is not None and found is not None:
        keep_derived(recipe, workload, what, found)
    return found
