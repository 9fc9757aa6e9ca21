"""Give a head weights of its own where the checkpoint stores it apart from the embedding.

A config class of transformers may tie the head to the embedding whatever the checkpoint's config
says, or by default where the config says nothing. The tensors of the checkpoint decide, if they are
known; otherwise `tie_word_embeddings` in its config does.
"""

from collections.abc import Mapping
from typing import Any

import torch

from llmsim_magic.capture.checkpoint.checkpoint import Checkpoint
from llmsim_magic.capture.checkpoint.checkpoint_names import CheckpointNames
from llmsim_magic.capture.checkpoint.stored_tensors import StoredTensors

_KEY = "tie_word_embeddings"
# T5 1.1 and its multilingual versions store both, as their published numbers of parameters say,
# although their config classes tie whatever a config says.
_T5_1_1 = frozenset({"t5", "mt5", "umt5"})


def separate_head(
    module: torch.nn.Module, config: Any, checkpoint: Checkpoint | None
) -> tuple[str, ...]:
    """Untie the head of a model on the meta device, in place, if its checkpoint stores it apart.

    Args:
        module: The model as built.
        config: Its config, which transformers may have changed.
        checkpoint: Facts about the checkpoint; None for a config object.

    Returns:
        A note for the report, if the head was untied, or if it is unknown whether it is tied.
    """
    head = _with_weight(module, "get_output_embeddings")
    embedding = _with_weight(module, "get_input_embeddings")
    if head is None or embedding is None or head.weight is not embedding.weight:
        return ()
    if checkpoint is None:
        reason, note = _reason_in_object(config), ""
    else:
        pair = _stored_pair(module, head, embedding, checkpoint.tensors)
        reason, note = _in_checkpoint(config, checkpoint, pair)
    if reason:
        weight = head.weight
        head.weight = torch.nn.Parameter(torch.empty_like(weight), weight.requires_grad)
        note = f"the head is not tied to the embedding, as transformers builds it: {reason}"
    return (note,) if note else ()


def _in_checkpoint(
    config: Any, checkpoint: Checkpoint, pair: tuple[str, str] | None
) -> tuple[str, str]:
    """Why a head is apart by what is known of its checkpoint, or else a note on what is not known.

    As `from_pretrained` does, a head that is stored with the values of the embedding is tied.
    """
    tensors = checkpoint.tensors
    if tensors is None:
        return _in_keys(config, checkpoint)
    are_equal = tensors.have_equal_values(*pair) if pair is not None else True
    if are_equal is not None:
        return "" if are_equal else "its checkpoint stores both, with different values", ""
    if _says_tied(checkpoint.keys):
        return "", (
            "its checkpoint stores the head and the embedding, and it cannot be known here whether "
            f"with equal values; they are tied, as {_KEY}=True says"
        )
    if tensors.stores_shared_twice:
        return _in_keys(config, checkpoint)
    return "its checkpoint stores both", ""


def _with_weight(module: torch.nn.Module, method: str) -> Any:
    """What a method of a model of transformers returns, if it has a weight; else None."""
    try:
        found = getattr(module, method)()
    except Exception:  # not a model of transformers, or one without embeddings
        return None
    return found if isinstance(getattr(found, "weight", None), torch.nn.Parameter) else None


def _stored_pair(
    module: torch.nn.Module, head: Any, embedding: Any, tensors: StoredTensors | None
) -> tuple[str, str] | None:
    """The tensors of a checkpoint for the head and for the embedding, if it has one for each."""
    if tensors is None:
        return None
    names = CheckpointNames(module)
    in_model = {names.in_model(tensor): tensor for tensor in tensors.files}
    found = {
        name: in_model[name]
        for name, each in module.named_parameters(remove_duplicate=False)
        if each is head.weight and name in in_model
    }
    heads = _weights_of(module, head) & found.keys()
    others = found.keys() - heads
    if not heads or not others:
        return None
    first = (_weights_of(module, embedding) & others) or others
    return found[min(heads)], found[min(first)]


def _weights_of(module: torch.nn.Module, part: Any) -> set[str]:
    """The names that a part of a module gives its weight."""
    modules = module.named_modules(remove_duplicate=False)
    return {f"{path}.weight" for path, each in modules if each is part}


def _in_keys(config: Any, checkpoint: Checkpoint) -> tuple[str, str]:
    """Why a head is apart by the raw keys of a config, or else a note if they do not say."""
    reason = _reason_in_keys(config, checkpoint.keys)
    is_silent = all(part.get(_KEY) is None for part in _parts(checkpoint.keys))
    if reason or checkpoint.is_checked or not is_silent:
        return reason, ""
    return "", (
        "its config does not say whether the checkpoint stores the head apart from the "
        f"embedding; they are tied, as transformers does by default; {_KEY} in the config decides"
    )


def _says_tied(keys: Mapping[str, Any]) -> bool:
    said = [part[_KEY] for part in _parts(keys) if part.get(_KEY) is not None]
    return said[:1] == [True]


def _parts(keys: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The keys of a config, then those of its language model's."""
    text = keys.get("text_config")
    return [keys, text] if isinstance(text, Mapping) else [keys]


def _reason_in_keys(config: Any, keys: Mapping[str, Any]) -> str:
    """Why a head is apart by the raw keys of a config; empty if they do not say so."""
    if keys.get(_KEY) is None:
        return _reason_in_text(config)
    text = keys.get("text_config")
    is_tied = keys[_KEY] is not False or (isinstance(text, Mapping) and text.get(_KEY) is True)
    if is_tied or (not _is_t5(config) and _always_ties(config)):
        return ""
    return f"its config says {_KEY}=False"


def _reason_in_object(config: Any) -> str:
    """Why a head is apart by a config object, whose class may have overwritten what it was given.

    T5 1.1 shares no parameters between embedding and head. Its mark, beside the key, is that the
    decoder's output is not scaled, or, in a class that only has this version, the gated layer.
    """
    if _is_t5(config):
        if getattr(config, "scale_decoder_outputs", True) is False:
            return "its decoder's output is not scaled, as in T5 1.1, which stores both"
        is_gated = getattr(config, "feed_forward_proj", "") == "gated-gelu"
        if is_gated and not hasattr(config, "scale_decoder_outputs"):
            return "its layers are gated, as in T5 1.1, which stores both"
    is_default = getattr(config, _KEY, None) == getattr(type(config), _KEY, None)
    return _reason_in_text(config) if is_default else ""


def _is_t5(config: Any) -> bool:
    """Whether a config is of the family of T5, also by a class derived from one of its own."""
    types = {getattr(each, "model_type", None) for each in type(config).__mro__}
    return not types.isdisjoint(_T5_1_1)


def _always_ties(config: Any) -> bool:
    """Whether a config's class overwrites a key that says False, in `text_config` too.

    A class does so if checkpoints of its type store one matrix although their configs say False.
    """
    try:
        keys = config.to_dict() | {_KEY: False}
        if isinstance(keys.get("text_config"), dict):
            keys["text_config"] |= {_KEY: False}
        return getattr(type(config).from_dict(keys), _KEY, False) is True
    except Exception:  # of the class's own validation
        return False


def _reason_in_text(config: Any) -> str:
    """Transformers 4, which wrote such configs, tied by the config of the language model."""
    text = getattr(config, "text_config", None)
    is_apart = text is not None and getattr(text, _KEY, None) is False
    return f"its config does not say {_KEY}, and its text_config says False" if is_apart else ""
