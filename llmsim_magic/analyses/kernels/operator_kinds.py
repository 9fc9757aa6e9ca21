"""The kind of work an operator does, derived from its kernels and never from its name."""

from llmsim_magic.analyses.kernels import training_kernels
from llmsim_magic.analyses.kernels.elementwise_work import is_elementwise, short_name
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Kernel
from llmsim_magic.records.trace.trace import Trace

_ATTENTIONS = training_kernels.ATTENTIONS | {
    "scaled_dot_product_attention",
    "flex_attention",
    "latent_attention",
}
_EMBEDDINGS = frozenset({"embedding", "embedding_dense_backward"})
_STATISTICS = frozenset({"mean", "var", "var_mean", "native_layer_norm", "native_group_norm"})


@memoize
def operator_kinds(trace: Trace) -> tuple[str, ...]:
    """The kind of each operator of the pass.

    Returns:
        One of matmul, attention, normalisation, elementwise, embedding, movement, or `nothing` for
        an operator that runs no kernel, such as dropout in inference.
    """
    return tuple(trace.expand_replays(recorded_operator_kinds(trace)))


@memoize
def recorded_operator_kinds(trace: Trace) -> tuple[str, ...]:
    """The kind of each recorded operator."""
    return tuple(map(_kind, trace.recorded.kernels_by_operator))


def _kind(kernels: tuple[Kernel, ...]) -> str:
    names = {short_name(kernel.name) for kernel in kernels}
    if not kernels:
        return "nothing"
    if names & _ATTENTIONS:
        return "attention"
    if any(kernel.flops for kernel in kernels):
        return "matmul"
    if names & _STATISTICS or any(
        "norm" in name and not name.startswith(training_kernels.FOREACH) for name in names
    ):
        return "normalisation"
    if names & _EMBEDDINGS:
        return "embedding"
    if any(map(is_elementwise, kernels)):
        return "elementwise"
    return "movement"
