"""The error of a device that does not compute in a dtype: where that is from, what to give."""

from llmsim_magic.analyses.cost.model_flops import compute_dtype
from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.records.errors import RefusedDtype
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.dtypes import DTYPES, arithmetic
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner


def require_dtype(trace: Trace, device: Accelerator, planner: CapacityPlanner | None) -> None:
    """Check that a device computes in the dtype of a pass.

    Args:
        trace: the pass.
        device: the accelerator.
        planner: traced the pass; None for a module that was traced on given inputs.

    Raises:
        RefusedDtype: it does not; the message says where the dtype is from, and what to give.
    """
    why = refusal(trace, device)
    if why is None:
        return
    usable = [name for name in DTYPES if arithmetic(name) in device.peak_flops]
    legal = ", ".join(device.peak_flops)
    other = f"a device with {arithmetic(compute_dtype(trace))}"
    is_live = planner is None or any(each.meta_model for each in planner.recipes.values())
    if is_live:
        advice = [f"a module in {' or '.join(usable)}"] if usable else []
    else:
        advice = [f"dtype {' or '.join(usable)}"] if usable else []
    origin = _origin(trace, planner, is_live=is_live)
    raise RefusedDtype(
        f"hardware: {device.name} {why}"
        + (f", {origin}; {device.name} computes in {legal}" if legal else "")
        + f"; give {', or '.join([*advice, other])}"
    )


def _origin(trace: Trace, planner: CapacityPlanner | None, *, is_live: bool) -> str:
    """Where the dtype of a pass is from, as a clause."""
    training = trace.training
    if training is not None and training.precision is not None:
        return f"that of precision {training.precision}"
    if planner is not None and planner.build.dtype is not None:
        return "the dtype that was given"
    if is_live:
        return "the dtype of the module"
    return f"the dtype in the config of {trace.model.name}"
