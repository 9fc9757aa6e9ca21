"""Inputs of a decode step, and of the prefill that fills the cache before it."""

from collections.abc import Callable, Iterator

from llmsim_magic.capture.inputs.forward_inputs import (
    EMBEDDINGS,
    add_decoder_tokens,
    encoder_inputs,
)
from llmsim_magic.capture.inputs.other_inputs import OTHER_INPUTS
from llmsim_magic.capture.modalities.added_audio import audio_for_tokens
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.placeholders import TOKEN_TYPE_KEYWORDS, has_placeholders
from llmsim_magic.capture.modalities.signature import (
    HuggingFaceModel,
    InputSpec,
    Keywords,
    is_encoder_decoder,
    parameters,
)
from llmsim_magic.capture.modalities.text import token_ids
from llmsim_magic.records.trace.workload import Workload

# Keywords with one entry per token of the prefill, which a decode step does not repeat.
_PER_TOKEN_KEYWORDS = (
    "input_ids",
    EMBEDDINGS,
    "attention_mask",
    "image_attention_mask",
    "token_type_ids",
    "bbox",
    *TOKEN_TYPE_KEYWORDS,
)


def priming_inputs(model: HuggingFaceModel, workload: Workload) -> Iterator[ModelInputs]:
    """Yield inputs of the pass that fills the cache with `context` tokens before a decode step.

    A model with placeholder tokens gets text alone, because images are tokens in its cache too.

    Args:
        model: The model on the meta device.
        workload: The decode workload.

    Yields:
        Candidates, the most likely first; the caller uses the first that the model can read.

    Raises:
        CannotTrace: If the forward requires inputs that cannot be derived from the config.
    """
    spec = InputSpec(model, workload.batch, workload.context)
    candidates = encoder_inputs(spec, text_only=has_placeholders(model))
    yield from add_decoder_tokens(spec, workload.context, candidates)


def decode_inputs(
    model: HuggingFaceModel, workload: Workload, state: Keywords, primed: Keywords
) -> ModelInputs:
    """Inputs of one decode step: one new token per sample, and the cache.

    Args:
        model: The model on the meta device.
        workload: The decode workload.
        state: The cache or recurrent state that the priming pass returned.
        primed: The keywords of the priming pass, whose layout of token ids or embeddings is used
            again.

    Returns:
        The keywords of the step.
    """
    spec = InputSpec(model, workload.batch, 1)
    name = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
    name = name if name in primed or EMBEDDINGS not in primed else EMBEDDINGS
    previous = primed.get(name, token_ids(model, workload.batch, 1))
    keywords = {**state, name: previous[:, :1]}
    for required in spec.required:
        if required in OTHER_INPUTS:
            keywords.setdefault(required, OTHER_INPUTS[required](spec))
    if "use_cache" in spec.accepted:
        keywords["use_cache"] = True
    return ModelInputs(keywords)


def _decode_inputs_with_media(
    model: HuggingFaceModel, workload: Workload, state: Keywords, primed: Keywords
) -> ModelInputs:
    """Inputs of one decode step that also repeats the images or audio of the priming pass."""
    keywords = decode_inputs(model, workload, state, primed).keywords
    media = {name: primed[name] for name in primed if name not in _PER_TOKEN_KEYWORDS}
    return ModelInputs(media | keywords)


def _decode_inputs_with_audio(
    model: HuggingFaceModel, workload: Workload, state: Keywords, primed: Keywords
) -> ModelInputs:
    """Inputs of one decode step that also reads the audio of its token."""
    keywords = decode_inputs(model, workload, state, primed).keywords
    layout = next(audio_for_tokens(InputSpec(model, workload.batch, 1)), None)
    if layout is None:
        raise ValueError("the forward takes no audio for each token")
    accepted = parameters(model.forward)
    heard = {name: value for name, value in layout.keywords.items() if name in accepted}
    return ModelInputs(heard | keywords, [layout.note])


MakeDecodeInputs = Callable[[HuggingFaceModel, Workload, Keywords, Keywords], ModelInputs]
# The most likely first; the caller uses the first whose inputs the model can read.
DECODE_INPUT_MAKERS: tuple[MakeDecodeInputs, ...] = (
    decode_inputs,
    _decode_inputs_with_media,
    _decode_inputs_with_audio,
)
