"""Inputs of a prefill, from the forward's signature and the model's config."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llmsim_magic.capture.inputs.other_inputs import OPTIONAL_INPUTS, OTHER_INPUTS
from llmsim_magic.capture.modalities import audio, video_session
from llmsim_magic.capture.modalities.added_audio import audio_for_tokens
from llmsim_magic.capture.modalities.codebooks import (
    CODEBOOKS_NOTE,
    codebook_count,
    codebook_token_ids,
    correct_layouts_first,
)
from llmsim_magic.capture.modalities.modality import Modality
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.placeholders import (
    TOKEN_TYPE_KEYWORDS,
    PlaceholderSpan,
    placeholder_note,
    placeholder_spans,
    tokens_with_placeholders,
)
from llmsim_magic.capture.modalities.signature import (
    HuggingFaceModel,
    InputSpec,
    is_encoder_decoder,
)
from llmsim_magic.capture.modalities.text import token_ids
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.workload import Workload

EMBEDDINGS = "inputs_embeds"


def prefill_inputs(model: HuggingFaceModel, workload: Workload) -> Iterator[ModelInputs]:
    """Yield inputs of a prefill of `context` tokens, or of an image or audio of the config's size.

    An encoder-decoder gets `context` tokens for its encoder and one for its decoder.

    Args:
        model: The model on the meta device.
        workload: The batch size and context length.

    Yields:
        Candidates, the most likely first; the caller uses the first that the model can read.

    Raises:
        CannotTrace: If the forward requires inputs that cannot be derived from the config.
    """
    spec = InputSpec(model, workload.batch, workload.context)
    for inputs in add_decoder_tokens(spec, 1, encoder_inputs(spec)):
        if is_encoder_decoder(model):
            inputs.notes.append("prefill: the encoder reads its input, the decoder its first token")
        yield inputs


def add_decoder_tokens(
    spec: InputSpec, count: int, candidates: Iterator[ModelInputs]
) -> Iterator[ModelInputs]:
    """Yield the candidates with `count` tokens for the decoder of an encoder-decoder."""
    if not is_encoder_decoder(spec.model):
        yield from correct_layouts_first(spec, spec.context, candidates)
        return
    plain = token_ids(spec.model, spec.batch, count)
    coded = list(codebook_token_ids(spec, count, codebook_count(spec)))
    with_tokens = (
        ModelInputs(inputs.keywords | {"decoder_input_ids": ids}, [*inputs.notes, *notes])
        for inputs in candidates
        for ids, notes in [(plain, []), *((ids, [CODEBOOKS_NOTE]) for ids in coded)]
    )
    yield from correct_layouts_first(spec, count, with_tokens)


def encoder_inputs(spec: InputSpec, *, text_only: bool = False) -> Iterator[ModelInputs]:
    """Yield complete inputs of the encoder, or of a model without one.

    Raises:
        CannotTrace: If the forward requires inputs that cannot be derived from the config.
    """
    first_missing: tuple[str, ...] = ()
    count = 0
    for inputs in _candidates(spec, text_only=text_only):
        missing = tuple(name for name in spec.required if name not in inputs.keywords)
        if missing:
            first_missing = first_missing or missing
            continue
        count += 1
        yield inputs
    if not count:
        raise CannotTrace(
            f"{type(spec.model).__name__} requires {', '.join(first_missing)}, "
            "which only the model around it makes; trace that model instead"
        )


def _candidates(spec: InputSpec, *, text_only: bool) -> Iterator[ModelInputs]:
    """Yield inputs, the most likely first; some lack keywords that the forward requires."""
    if text_only:
        yield _add_text(spec, ModelInputs({}), ())
        return
    embedded, spans, separate = placeholder_spans(spec)
    for with_optional in (False, True):
        for inputs in _layout_combinations(spec, embedded, separate):
            yield _add_text(spec, inputs, spans, with_optional=with_optional)
    for layout in audio_for_tokens(spec) if audio in separate else ():
        yield _add_text(spec, ModelInputs(dict(layout.keywords), [layout.note]), ())
    has_codebooks = "input_ids" in spec.accepted and not is_encoder_decoder(spec.model)
    codebooks = codebook_count(spec) if has_codebooks else 0
    for ids in codebook_token_ids(spec, spec.context, codebooks):
        for inputs in _layout_combinations(spec, ModelInputs({}), separate):
            for with_optional in (False, True):
                keywords = inputs.keywords | {"input_ids": ids}
                coded = ModelInputs(keywords, [*inputs.notes, CODEBOOKS_NOTE])
                yield _add_text(spec, coded, (), with_optional=with_optional)
    if (separate or spans) and "input_ids" in spec.accepted:
        note = "text alone is the input: no layout of an image or audio fits the config"
        yield _add_text(spec, ModelInputs({}, [note]), ())
    if EMBEDDINGS in spec.accepted and "input_ids" in spec.accepted and not separate:
        yield _embeddings(spec)


def _embeddings(spec: InputSpec) -> ModelInputs:
    """Embeddings in place of tokens, for a model whose tokens the model around it embeds."""
    keywords = {EMBEDDINGS: OTHER_INPUTS[EMBEDDINGS](spec)}
    if "use_cache" in spec.accepted:
        keywords["use_cache"] = True
    return ModelInputs(keywords, ["the input is embeddings: the model takes no token ids"])


def _layout_combinations(
    spec: InputSpec, start: ModelInputs, modalities: Sequence[Modality]
) -> Iterator[ModelInputs]:
    """Yield every combination of one layout per modality, added to `start`."""
    if not modalities:
        yield ModelInputs(dict(start.keywords), list(start.notes))
        return
    tried: list[Any] = []
    for layout in modalities[0].layouts(spec):
        keywords = {name: value for name, value in layout.keywords.items() if name in spec.accepted}
        shapes = {name: value.shape for name, value in keywords.items()}
        if shapes not in tried:
            tried.append(shapes)
            inputs = ModelInputs(start.keywords | keywords, [*start.notes, layout.note])
            yield from _layout_combinations(spec, inputs, modalities[1:])


def _add_text(
    spec: InputSpec,
    inputs: ModelInputs,
    spans: Sequence[PlaceholderSpan],
    *,
    with_optional: bool = False,
) -> ModelInputs:
    """Add the tokens and all other required keywords, and the optional ones if asked for."""
    keywords = {name: value for name, value in inputs.keywords.items() if name in spec.accepted}
    notes = inputs.notes
    if "input_ids" in spec.accepted:
        ids, token_types = tokens_with_placeholders(spec, spans)
        ids = keywords.setdefault("input_ids", ids)
        if spans:
            keywords |= {
                name: convert(token_types)
                for name, convert in TOKEN_TYPE_KEYWORDS.items()
                if name in spec.accepted
            }
            count = sum(span.count for span in spans)
            notes.append(placeholder_note(count, ids.shape[1], spec.context))
        if with_optional and "attention_mask" in spec.accepted:
            keywords["attention_mask"] = torch.ones_like(ids)
    main = spec.main_inputs
    if "input_ids" in keywords or audio.keyword(spec) in keywords:
        main = ()
    for name in (*main, *spec.required, *(OPTIONAL_INPUTS if with_optional else ())):
        if name in OTHER_INPUTS and name in spec.accepted and name not in keywords:
            keywords[name] = OTHER_INPUTS[name](spec)
    if video_session.KEYWORD in keywords:
        notes.append(video_session.note(keywords[video_session.KEYWORD]))
    if "use_cache" in spec.accepted:
        keywords["use_cache"] = True
    return ModelInputs(keywords, notes)
