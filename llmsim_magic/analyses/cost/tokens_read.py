"""The number of tokens a pass reads."""

from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.records.trace.trace import Trace, numel


def tokens_read(trace: Trace) -> int:
    """Tokens, audio frames or image patches that a pass reads over all sequences of its batch.

    Decode reads one per sequence. Other phases read the requested context, or the length of the
    longest stack of layers if the model fixes its own length. A training step reads all of its
    micro-batches, of which one is recorded, on each of its data-parallel devices.
    """
    workload = trace.workload
    if workload.phase == "decode":
        return workload.batch
    training = trace.training
    micro_batches, devices = (1, 1) if training is None else (training.accumulate, training.dp)
    requested = workload.batch * max(workload.context, 1)
    read = [_rows(trace, layer) * micro_batches for layer in _first_layers(trace)]
    of_one = requested if requested in read else max(read, default=requested)
    return of_one * devices


def _first_layers(trace: Trace) -> list[Layer]:
    """The first executed layer of each stack."""
    firsts: dict[str, Layer] = {}
    for layer in layers(trace):
        if layer is not None:
            firsts.setdefault(layer.stack, layer)
    return list(firsts.values())


def _rows(trace: Trace, layer: Layer) -> int:
    """The number of vectors in a layer's input."""
    called = trace.calls.get(layer.path)
    shapes = trace.recorded.shapes(called.first.inputs[:1]) if called else []
    return max((numel(shape[:-1]) for shape in shapes), default=0)
