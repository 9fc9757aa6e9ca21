"""Which executions of a model are predicted on a device, and why the others are not."""

from collections.abc import Iterable, Mapping, Sequence

from llmsim_magic.analyses.engine.engine_coverage import engine_gap
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.execution import (
    ALL_RUNTIMES,
    EXECUTIONS,
    Execution,
    runtimes_of,
)
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.request import MEASURED, Deployment

_MAKERS_WITH_GRAPHS = ("NVIDIA", "AMD")
_MAX_NAMED = 4  # devices in a note


def device_gap(execution: Execution, kind: str, vendor: str, *, trains: bool = False) -> str | None:
    """Why an execution is not predicted on a kind of device of a vendor; None if it is.

    Args:
        execution: a runtime and its launch.
        kind: gpu, npu or cpu.
        vendor: of the device.
        trains: whether it executes a training step.
    """
    if kind == "cpu":
        if trains:
            return "the kernels of a training step on a CPU are not priced"
        if execution.runtime == "vllm":
            return "an engine's kernels on a CPU are not priced"
        return "a CPU has no CUDA graph" if execution.launch == "graph" else None
    if execution.runtime == "transformers" and (kind != "gpu" or vendor not in _MAKERS_WITH_GRAPHS):
        return "transformers runs there through the vendor's own compiler, which is not priced"
    return None


def gap(execution: Execution, trace: Trace, device: Accelerator | None) -> str | None:
    """Why an execution of a model is not predicted on a device; None if it is.

    Args:
        execution: a runtime and its launch.
        trace: a pass of the model.
        device: the accelerator; None for what holds on any.
    """
    if execution.runtime == "vllm":
        missing = engine_gap(trace)
        if missing is not None:
            return missing
    if device is None:
        return None
    trains = trace.training is not None
    return device_gap(execution, device.kind, device.vendor, trains=trains)


def executions_on(
    deployment: Deployment, trace: Trace, device: Accelerator | None = None
) -> tuple[Execution, ...]:
    """The executions that a deployment asks for and that are predicted; maybe none."""
    return tuple(each for each in deployment.executions if gap(each, trace, device) is None)


def require_executions(deployment: Deployment, trace: Trace, device: Accelerator | None) -> None:
    """Check that a deployment leaves an execution of the model on a device, or on any if None.

    Raises:
        InvalidValue: there is none; the message says which there are, and why not this one.
    """
    gaps = {each: gap(each, trace, device) for each in EXECUTIONS}
    where = "" if device is None else f" on {device.name}"
    _require(deployment, gaps, f"{trace.model.name}{where}")


def require_executions_here(deployment: Deployment, name: str, *, trains: bool = False) -> None:
    """As `require_executions`, before this machine is measured, if its CPU would be.

    Args:
        deployment: a runtime and a launch.
        name: of a device; one that is not of this machine passes.
        trains: whether a training step is executed.
    """
    if name not in MEASURED:
        return
    from llmsim_magic.simulate.hardware.local_device import measures_gpu

    if not measures_gpu(name):
        gaps = {each: device_gap(each, "cpu", "", trains=trains) for each in EXECUTIONS}
        _require(deployment, gaps, "a CPU")


def _require(deployment: Deployment, gaps: Mapping[Execution, str | None], subject: str) -> None:
    asked = deployment.executions
    if any(gaps[each] is None for each in asked):
        return
    known = [each for each, missing in gaps.items() if missing is None]
    if not known:
        why = _reasons(gaps, asked)
        raise InvalidValue(f"hardware: no runtime is predicted for {subject}: {why}")
    runtime, launch = deployment.runtime, deployment.launch
    usable = runtimes_of(known)
    if runtime not in (None, ALL_RUNTIMES, *usable):
        legal, why = " or ".join(usable), _reasons(gaps, asked)
        raise InvalidValue(f"runtime must be {legal} for {subject}, not {runtime!r}: {why}")
    launches = dict.fromkeys(each.launch for each in known if runtime in (None, each.runtime))
    legal = " or ".join(launches)
    why = _reasons(gaps, (each for each in asked if each.runtime in usable))
    raise InvalidValue(f"launch must be {legal} for {subject}, not {launch!r}: {why}")


def _reasons(gaps: Mapping[Execution, str | None], executions: Iterable[Execution]) -> str:
    return "; ".join(dict.fromkeys(filter(None, (gaps[each] for each in executions))))


def gap_notes(
    deployment: Deployment, trace: Trace, devices: Sequence[Accelerator]
) -> tuple[str, ...]:
    """Sentences on the runtimes and launches without rows: of the model, then of some devices.

    That an engine does not train is said only to who asks for every runtime.
    """
    notes = []
    serves = trace.training is None or deployment.runtime == ALL_RUNTIMES
    for execution in deployment.executions:
        if execution.runtime == "vllm" and not serves:
            continue
        missing = gap(execution, trace, None)
        if missing is not None:
            notes.append(f"no rows of {execution} for {trace.model.name}: {missing}")
            continue
        without: dict[str, list[str]] = {}
        for device in devices:
            missing = gap(execution, trace, device)
            if missing is not None:
                without.setdefault(missing, []).append(device.name)
        notes += [
            f"no rows of {execution} on {_listed(names)}: {missing}"
            for missing, names in without.items()
        ]
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def memory_runtimes(
    deployment: Deployment, trace: Trace, device: Accelerator | None
) -> tuple[str, ...]:
    """The runtimes under which memory is shown: without hardware transformers, if none is named."""
    if deployment.runtime is None and not deployment.hardware:
        return ("transformers",)
    return runtimes_of(executions_on(deployment, trace, device))
