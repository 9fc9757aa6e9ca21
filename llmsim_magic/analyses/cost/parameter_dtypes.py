"""The dtypes in which a pass holds its parameters, as a report says them."""

from collections import Counter

from llmsim_magic.records.trace.trace import Trace


def parameter_dtypes(trace: Trace) -> str:
    """The dtypes of parameters, that of the most first: `bfloat16`, or `4 bits and float32`.

    Buffers do not count. Without parameters it is the dtype of the model.
    """
    counts = Counter[str]()
    for each in trace.parameters:
        if not each.is_buffer and each.tied_to is None:
            is_packed = each.packed > 1
            name = f"{8 * each.itemsize // each.packed} bits" if is_packed else each.dtype
            counts[name] += each.numel
    names = [name for name, _ in counts.most_common()]
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0] if names else trace.model.dtype
