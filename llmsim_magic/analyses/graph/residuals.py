"""Which edges of the dataflow are residual connections."""

from llmsim_magic.analyses.graph.dataflow import Edge, depends_on, ranks
from llmsim_magic.analyses.kernels.elementwise_work import short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.trace import Trace

_memoized_ranks = memoize(ranks)


def is_residual(trace: Trace, edge: Edge) -> bool:
    """Whether an edge feeds an addition directly that its source also reaches through others."""
    record = trace.recorded
    storage = record.tensors[edge.tensor].storage
    added = any(
        short_name(kernel.name) in ("add", "add_")
        and any(
            record.tensors[index].storage == storage
            and record.tensors[index].shape == record.tensors[kernel.outputs[0]].shape
            for index in kernel.inputs
        )
        for kernel in record.kernels_by_operator[trace.steps[edge.target][0]]
    )
    others = [other for other in depends_on(trace)[edge.target] if other != edge.source]
    return added and any(_reaches(trace, edge.source, other) for other in others)


def _reaches(trace: Trace, source: int, target: int) -> bool:
    """Whether the target depends on the source, directly or through other operators."""
    rank = _memoized_ranks(trace)
    pending, seen = [target], {target}
    while pending:
        order = pending.pop()
        if order == source:
            return True
        sources = depends_on(trace)[order]
        fresh = [each for each in sources if each not in seen and rank[each] >= rank[source]]
        seen.update(fresh)
        pending += fresh
    return False
