"""Read the cache or recurrent state that a forward pass returns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from llmsim_magic.capture.inputs.signature import HuggingFaceModel, Keywords, parameters


def cache_in_output(model: HuggingFaceModel, output: Any) -> Keywords:
    """The KV cache or recurrent state in a model's output.

    Args:
        model: The model, whose forward accepts the state of the previous pass.
        output: What its forward returned.

    Returns:
        Those items of the output, other than tensors, that the forward also accepts as keywords.
    """
    if not hasattr(output, "items"):
        return {}
    accepted = parameters(model.forward)
    return {
        key: value
        for key, value in output.items()
        if key in accepted and value is not None and not isinstance(value, torch.Tensor)
    }


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
