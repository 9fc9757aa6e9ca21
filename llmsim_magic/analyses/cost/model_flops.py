"""FLOPs of a training step that the model needs, and how many of a device's they are (MFU)."""

from collections import Counter

from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.recorded import Pass
from llmsim_magic.records.trace.trace import Trace

_COUNTED: tuple[Pass, ...] = ("forward", "backward")


@memoize
def model_flops(trace: Trace) -> int:
    """FLOPs of forward and backward of a whole step, as torch counts them.

    What checkpointing computes again is left out, all micro-batches are in. Attention counts
    whole, also where a causal mask hides half of it.
    """
    return sum(_by_dtype(trace).values())


def compute_dtype(trace: Trace) -> str:
    """The dtype in which a step does most of its FLOPs: under autocast the lower one."""
    return max(_by_dtype(trace).items(), key=lambda each: each[1], default=(trace.model.dtype, 0))[
        0
    ]


def model_flops_utilization(trace: Trace, accelerator: Accelerator, seconds: float) -> float | None:
    """Model FLOPs utilization (MFU): the model's FLOPs over those of the device in that time.

    As PaLM (arXiv 2204.02311) defines it: no FLOPs that are computed again, and the dense peak of
    the device in the dtype of the step.

    Args:
        trace: a training step, of one device.
        accelerator: the device.
        seconds: how long a step takes.

    Returns:
        A fraction; None without a time, or if no peak in the dtype is known.
    """
    try:
        peak = accelerator.peak(compute_dtype(trace))
    except InvalidValue:
        return None
    return model_flops(trace) / (peak * seconds) if seconds else None


@memoize
def _by_dtype(trace: Trace) -> Counter[str]:
    record = trace.recorded
    micro_batches = 1 if trace.training is None else trace.training.accumulate
    found: Counter[str] = Counter()
    for kernel in record.kernels:
        if not kernel.flops or kernel.operator is None:
            continue
        if record.operators[kernel.operator].part in _COUNTED:
            runs = trace.run_counts[kernel.operator] * micro_batches
            found[record.tensors[kernel.outputs[0]].dtype] += kernel.flops * runs
    return found
