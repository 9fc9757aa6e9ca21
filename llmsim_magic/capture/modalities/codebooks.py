"""Token ids of models that read one token of every codebook at each position."""

from collections.abc import Iterator

import torch

from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.capture.modalities import images
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import HuggingFaceModel, InputSpec, Keywords
from llmsim_magic.capture.modalities.text import plain_token_id

CODEBOOKS_NOTE = "each position holds one token of every codebook"


def codebook_count(spec: InputSpec) -> int:
    """The number of codebooks; 0 for image models, whose `num_channels` means color channels."""
    reads_tokens = {"input_ids", "decoder_input_ids"} & set(spec.accepted)
    if images.keyword(spec) is not None or not reads_tokens:
        return 0
    return spec.config_int("num_codebooks", "num_channels", "num_quantizers", default=0)


def codebook_token_ids(spec: InputSpec, count: int, codebooks: int) -> Iterator[torch.Tensor]:
    """Yield token ids for `count` positions in each layout that models use.

    The layouts are `[batch · codebooks, count]`, `[batch, count, codebooks]` and
    `[batch, count, codebooks + 1]`, with a text token at each position.
    """
    if codebooks:
        shapes = (
            (spec.batch * codebooks, count),
            (spec.batch, count, codebooks),
            (spec.batch, count, codebooks + 1),
        )
        for shape in shapes:
            yield torch.full(shape, plain_token_id(spec.model), dtype=torch.long)


def correct_layouts_first(
    spec: InputSpec, count: int, candidates: Iterator[ModelInputs]
) -> Iterator[ModelInputs]:
    """Yield the candidates first that the model reads as `count` or more positions per sample.

    Codebook layouts differ only in their shapes, so a model may misread one layout as another
    with a different number of samples or positions.
    """
    if not codebook_count(spec):
        yield from candidates
        return
    others = []
    for inputs in candidates:
        shape = _hidden_shape(spec.model, inputs.keywords)
        if shape is None or (shape[0] == spec.batch and shape[1] >= count):
            yield inputs
        else:
            others.append(inputs)
    yield from others


def _hidden_shape(model: HuggingFaceModel, keywords: Keywords) -> tuple[int, ...] | None:
    """Samples and positions of the model's first hidden states; None if it does not return them."""
    try:
        with restored(model), evaluating_partially():
            output = model(**keywords, output_hidden_states=True)
    except Exception:  # the actual pass reports the error
        return None
    states = getattr(output, "decoder_hidden_states", getattr(output, "hidden_states", None))
    return tuple(states[0].shape[:2]) if states else None
