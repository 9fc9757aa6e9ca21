"""A pass as an inference engine runs it: with the engine's kernels for attention."""

from dataclasses import replace

from llmsim_magic.analyses.engine.kernel_rewrite import KernelRewrite
from llmsim_magic.analyses.engine.latent_attention import absorb_projections
from llmsim_magic.analyses.engine.unfused_attention import fuse_attention
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.trace import Trace

FUSES = "attention is one fused kernel, which holds no score matrix and no mask"
ABSORBS = (
    "decode absorbs the projection of the cached latent into the query and the output; "
    "transformers applies it to every cached token in each step"
)


@memoize
def engine_trace(trace: Trace) -> Trace:
    """The pass with an engine's attention; the same trace if the engine runs it as recorded.

    Attention that the model writes out becomes one kernel. In decode, attention over a cached
    latent absorbs the latent's projection. Operators, and the order of kernels, stay as recorded.
    """
    return _engine_pass(trace)[0]


def engine_notes(trace: Trace) -> tuple[str, ...]:
    """What an engine runs otherwise than the model does, in sentences."""
    return _engine_pass(trace)[1]


@memoize
def _engine_pass(trace: Trace) -> tuple[Trace, tuple[str, ...]]:
    rewrite = KernelRewrite(trace.recorded)
    notes = []
    if fuse_attention(rewrite):
        notes.append(FUSES)
    if trace.workload.phase == "decode":
        if notes:  # the projections of attention that was written out
            rewrite = KernelRewrite(rewrite.rewritten())
        if absorb_projections(rewrite):
            notes.append(ABSORBS)
    if not notes:
        return trace, ()
    return replace(trace, recorded=rewrite.rewritten()), tuple(notes)
