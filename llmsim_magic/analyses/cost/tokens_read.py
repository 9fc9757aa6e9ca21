"""How many tokens a pass reads."""

from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.records.trace.trace import Trace, numel


def tokens_read(trace: Trace) -> int:
    """Tokens, frames or patches that a pass reads, of all its sequences together.

    One of each in decode. Else as many as were asked for, or, where a model fixes its own length,
    as its longest stack of layers works on.
    """
    workload = trace.workload
    if workload.phase == "decode":
        return workload.batch
    asked = workload.batch * max(workload.context, 1)
    read = [_rows(trace, layer) for layer in _firsts(trace)]
    return asked if asked in read else max(read, default=asked)


def _firsts(trace: Trace) -> list[Layer]:
    """The first layer of each stack that runs."""
    firsts: dict[str, Layer] = {}
    for layer in layers(trace):
        if layer is not None:
            firsts.setdefault(layer.stack, layer)
    return list(firsts.values())


def _rows(trace: Trace, layer: Layer) -> int:
    """Vectors that a layer is given."""
    called = trace.calls.get(layer.path)
    shapes = trace.recorded.shapes(called.first.inputs[:1]) if called else []
    return max((numel(shape[:-1]) for shape in shapes), default=0)
