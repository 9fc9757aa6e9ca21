"""Give a head weights of its own where the checkpoint stores it apart from the embedding.

A config class of transformers may tie the head to the embedding whatever the checkpoint's config
says, or by a default where it says nothing. What the checkpoint stores decides, if it is at hand;
else its `tie_word_embeddings`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from llmsim_magic.capture.checkpoint.checkpoint import Checkpoint
from llmsim_magic.capture.checkpoint.checkpoint_names import CheckpointNames

_KEY = "tie_word_embeddings"
# Their published configs say False although their checkpoints store one matrix; transformers' own
# config classes say so.
_STORED_ONCE = frozenset({"csm", "longt5", "udop", "vilt"})


def separate_head(
    module: torch.nn.Module, config: Any, checkpoint: Checkpoint | None
) -> tuple[str, ...]:
    """Untie the head of a model on the meta device, in place, if its checkpoint stores it apart.

    Args:
        module: The model as built.
        config: Its config, which transformers may have changed.
        checkpoint: What is known of the checkpoint; None for a config object.

    Returns:
        A note for the report, if the head was untied, or if it is unknown whether it is tied.
    """
    head, embedding = _of(module, "get_output_embeddings"), _of(module, "get_input_embeddings")
    if head is None or embedding is None or head.weight is not embedding.weight:
        return ()
    if checkpoint is not None and checkpoint.tensors is not None:
        stored = _is_stored_apart(module, head, checkpoint.tensors)
        reason = "its checkpoint stores both" if stored else ""
    elif checkpoint is not None:
        reason = _reason_in_keys(config, checkpoint.keys)
    else:
        reason = _reason_in_object(config)
    if reason:
        weight = head.weight
        head.weight = torch.nn.Parameter(torch.empty_like(weight), weight.requires_grad)
        return (f"the head is not tied to the embedding, as transformers builds it: {reason}",)
    if _is_unknown(config, checkpoint):
        return (
            "its config does not say whether the checkpoint stores the head apart from the "
            f"embedding; they are tied, as transformers does by default; {_KEY} in the config "
            "decides",
        )
    return ()


def _of(module: torch.nn.Module, method: str) -> Any:
    """An embedding or a head of a model of transformers that has a weight; else None."""
    try:
        found = getattr(module, method)()
    except Exception:  # not a model of transformers, or one without embeddings
        return None
    return found if isinstance(getattr(found, "weight", None), torch.nn.Parameter) else None


def _is_stored_apart(
    module: torch.nn.Module, head: torch.nn.Module, tensors: frozenset[str]
) -> bool:
    """Whether a checkpoint has a tensor for the head, and another one for the embedding."""
    names = CheckpointNames(module)
    shared = {
        name
        for name, each in module.named_parameters(remove_duplicate=False)
        if each is head.weight
    }
    heads = {f"{path}.weight" for path, each in module.named_modules() if each is head}
    found = {names.in_model(tensor) for tensor in tensors} & shared
    return bool(found & heads) and bool(found - heads)


def _reason_in_keys(config: Any, keys: Mapping[str, Any]) -> str:
    """Why a head is apart by the raw keys of a config; empty if they do not say so."""
    text = keys.get("text_config")
    in_text = text.get(_KEY) if isinstance(text, Mapping) else None
    if keys.get(_KEY) is False:
        is_tied = in_text is True or getattr(config, "model_type", None) in _STORED_ONCE
        return "" if is_tied else f"its config says {_KEY}=False"
    return _reason_in_text(config) if keys.get(_KEY) is None else ""


def _reason_in_object(config: Any) -> str:
    """Why a head is apart by a config object, whose class may have overwritten what it was given.

    T5 1.1 shares no parameters between embedding and head. Its mark, beside the key, is that the
    decoder's output is not scaled, or, in a class that only has this version, the gated layer.
    """
    if getattr(config, "model_type", None) not in _STORED_ONCE:
        if getattr(config, "scale_decoder_outputs", True) is False:
            return "its decoder's output is not scaled, as in T5 1.1, which stores both"
        if _is_only_t5_1_1(config):
            return "its layers are gated, as in T5 1.1, which stores both"
    is_default = getattr(config, _KEY, None) == getattr(type(config), _KEY, None)
    return _reason_in_text(config) if is_default else ""


def _is_only_t5_1_1(config: Any) -> bool:
    is_gated = getattr(config, "feed_forward_proj", "") == "gated-gelu"
    return is_gated and not hasattr(config, "scale_decoder_outputs")


def _reason_in_text(config: Any) -> str:
    """Transformers 4, which wrote such configs, tied by the config of the language model."""
    text = getattr(config, "text_config", None)
    is_apart = text is not None and getattr(text, _KEY, None) is False
    return f"its config does not say {_KEY}, and its text_config says False" if is_apart else ""


def _is_unknown(config: Any, checkpoint: Checkpoint | None) -> bool:
    """Whether a default of transformers alone ties the head."""
    if checkpoint is None or checkpoint.is_checked or checkpoint.tensors is not None:
        return False
    text = checkpoint.keys.get("text_config")
    parts = [checkpoint.keys, text if isinstance(text, Mapping) else {}]
    return all(part.get(_KEY) is None for part in parts)
