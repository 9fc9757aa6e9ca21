"""Read the cache or recurrent state that a forward pass returns, or was given to fill."""

import importlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import held_tensors
from llmsim_magic.capture.modalities.signature import HuggingFaceModel, Keywords, parameters

CACHE_KEYWORDS = ("cache", "past_key_values")  # of the models of transformers


def cache_in_output(model: HuggingFaceModel, output: Any) -> Keywords:
    """The KV cache or recurrent state in a model's output.

    Args:
        model: The model, whose forward accepts the state of the previous pass.
        output: What its forward returned.

    Returns:
        Those items of the output that the forward also accepts as keywords, and that carry state
        from token to token.
    """
    if not hasattr(output, "items"):
        return {}
    accepted = parameters(model.forward)
    return {
        key: value
        for key, value in output.items()
        if key in accepted and _is_cache(key, value, accepted)
    }


def _is_cache(key: str, value: Any, accepted: Collection[str]) -> bool:
    """Whether an item of the output is a cache; features of an image or audio are none.

    A cache holds floating-point tensors; a frame index, a name or a setting does not. An object of
    a class of its own is a cache. Tensors in plain collections are one if the model has a keyword
    that asks for them, or reads tokens; other models return features for reuse in this way.
    """
    if isinstance(value, torch.Tensor):
        return False
    if not any(tensor.is_floating_point() for _, tensor in held_tensors(key, value)):
        return False
    if not isinstance(value, (tuple, list, Mapping)) and not is_dataclass(value):
        return True
    return not {"use_cache", f"use_{key}", "input_ids", "decoder_input_ids"}.isdisjoint(accepted)


def cache_after(model: HuggingFaceModel, keywords: Keywords, output: Any) -> Keywords:
    """The cache after a pass: the one that it returns, or the one that it was given and filled.

    Args:
        model: The model.
        keywords: What its forward was given.
        output: What its forward returned.
    """
    given = {
        key: value
        for key, value in keywords.items()
        if isinstance(value, _cache_class()) and any(held_tensors(key, value))
    }
    return given | cache_in_output(model, output)


def with_empty_cache(model: HuggingFaceModel, keywords: Keywords) -> Keywords | None:
    """The keywords with an empty cache, as `generate` gives it to a model that returns none.

    Returns:
        None if the forward takes no cache, or was given one.
    """
    accepted = parameters(model.forward)
    name = next((name for name in CACHE_KEYWORDS if name in accepted), None)
    if name is None or keywords.get(name) is not None:
        return None
    dynamic = importlib.import_module("transformers").DynamicCache
    return {**keywords, name: dynamic(config=model.config)}


def _cache_class() -> type[Any]:
    cache: type[Any] = importlib.import_module("transformers").Cache
    return cache


@contextmanager
def saving_encoder_outputs(model: HuggingFaceModel) -> Iterator[Keywords]:
    """Collect the encoder's output of the passes inside, as the keyword `encoder_outputs`.

    The dictionary stays empty for a model without an encoder.
    """
    saved: Keywords = {}
    encoder = model.get_encoder() if "encoder_outputs" in parameters(model.forward) else model

    def save(module: torch.nn.Module, args: Any, output: Any) -> None:
        saved["encoder_outputs"] = output

    hook = encoder.register_forward_hook(save) if encoder is not model else None
    try:
        yield saved
    finally:
        if hook is not None:
            hook.remove()
