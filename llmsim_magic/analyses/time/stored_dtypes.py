"""What weights and cache are stored in, for the time that reading them takes."""

from collections import Counter

from llmsim_magic.analyses.memory.weights import matrices, packing_of
from llmsim_magic.analyses.quantization import storage_layouts as layouts
from llmsim_magic.analyses.quantization.packing import Packing
from llmsim_magic.analyses.time.kernel_sizes import StoredDtypes
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace


def stored_dtypes(
    trace: Trace,
    accelerator: Accelerator,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
) -> StoredDtypes:
    """What a pass reads from memory: weights in a chosen dtype, or as the checkpoint has them.

    Matrices are packed as `analyses.weights` counts them, so head, embeddings, norms and what a
    checkpoint leaves out stay as traced. fp8 weights are multiplied in fp8 where the device
    computes in it, else they are read in 8 bits and widened to the traced dtype; so is fp4 if the
    checkpoint quantises activations too. int4 and int8 are weight-only: read as they are stored
    and widened. bf16, fp16 and fp32 cast every weight, and products stay in the traced dtype.
    Without a choice keys and values are as traced.

    Products whose scales are shared by block are timed as if by tensor: what was measured of them
    has a floor ten times that of others, so it tells little of how fast memory is read.

    Raises `InvalidValue` for a dtype that does not exist, or a packing that is not known here.
    """
    name = None if weight_dtype is None else layouts.weight_dtype(weight_dtype)
    cache = None if kv_dtype is None else layouts.kv_dtype(kv_dtype)
    packing = packing_of(trace, name)
    if packing is None:
        return StoredDtypes(weights=name, cache=cache)
    multiplied = packing.arithmetic if packing.arithmetic in accelerator.peak_flops else None
    return StoredDtypes(
        weights=name or packing.arithmetic,
        cache=cache,
        activations=multiplied,
        packed=_bits(trace, packing),
    )


def _bits(trace: Trace, packing: Packing) -> dict[str, float]:
    """Bits for a weight of each recorded parameter that is packed, scales and zeros included.

    A recorded layer stands for its replays: where a checkpoint leaves some of them out, the bits
    are their mean, so that the bytes of the pass are right.
    """
    packed = matrices(trace, packing)
    nbytes: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for parameter in trace.parameters:
        if parameter.tied_to is None and not parameter.is_buffer:
            name, matrix = trace.recorded_path(parameter.name), packed.get(parameter.name)
            nbytes[name] += sum(matrix.parts()) if matrix else parameter.nbytes
            weights[name] += parameter.numel
    names = dict.fromkeys(map(trace.recorded_path, packed))
    return {name: 8 * nbytes[name] / weights[name] for name in names}
