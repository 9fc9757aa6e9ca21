"""Which passes the rules of an engine cover."""

from llmsim_magic.records.trace.trace import Trace

_OF_ATTENTION = frozenset({"keys", "values"})
_CROSS = "cross_attention"


def engine_gap(trace: Trace) -> str | None:
    """Why the rules of an engine do not cover a pass; None if they do.

    The rules are those of this folder and of the engine's memory: a pass is a prefill, which may
    be read in chunks, or a decode step of one token; attention is one kernel over a cache of keys
    and values; logits are computed for the last token, and sampled. They have

    * nothing to say of a model that does not generate: it has neither cache nor sampler;
    * no encoder, which reads its input whole, and no attention of a decoder to its states;
    * no fused scan for recurrent states, which transformers writes out token by token or block by
      block where its own optional kernels are missing.

    Args:
        trace: The pass, of any workload of the model.
    """
    if trace.training is not None:
        return "an engine serves models and does not train them"
    if not trace.model.generates:
        return "the model does not generate token by token"
    inputs = {each.name for each in trace.recorded.storages if each.role == "input"}
    if "decoder_input_ids" in inputs or any(_CROSS in slot.name for slot in trace.cache):
        return "the model has an encoder beside its decoder"
    if trace.workload.phase == "forward":
        return "the pass is neither a prefill nor a decode step"
    if any("state" in slot.name for slot in trace.cache):
        return "vLLM's kernels for the model's recurrent states are not modelled"
    if not any(slot.name.rpartition(".")[2] in _OF_ATTENTION for slot in trace.cache):
        return "the model keeps no keys and values"
    return None
