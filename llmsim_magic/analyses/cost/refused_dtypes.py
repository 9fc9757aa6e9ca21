"""Whether a device computes in the dtype of a pass."""

from llmsim_magic.analyses.cost.model_flops import compute_dtype
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.dtypes import arithmetic
from llmsim_magic.records.trace.trace import Trace


def refusal(trace: Trace, accelerator: Accelerator) -> str | None:
    """Why nothing runs a pass on a device, as `does not compute in bfloat16`; None if it computes.

    The dtype of a pass is that of most of its FLOPs. Stored weights that a device does not multiply
    are widened to it.
    """
    dtype = compute_dtype(trace)
    try:
        is_refused = arithmetic(dtype) not in accelerator.peak_flops
    except InvalidValue:  # no arithmetic of any device
        return None
    if not is_refused:
        return None
    known = bool(accelerator.peak_flops)
    return f"does not compute in {dtype}" if known else "has no peak that is known"
