"""Placeholder tokens, which a model replaces by the embeddings of an image, video or audio."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.capture.modalities import audio, images
from llmsim_magic.capture.modalities.modality import Layout, Modality
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import (
    HuggingFaceModel,
    InputSpec,
    Keywords,
    check_input_size,
    parameters,
)
from llmsim_magic.capture.modalities.text import plain_token_id, token_ids

EMBED_AUDIO = "get_audio_features"
# The type of a token (its number in `mm_token_type_ids`), the config's keys of the placeholder's
# id, and the method by which a model computes the embeddings that replace the placeholders.
_EMBEDDED: tuple[tuple[int, tuple[str, ...], str, Modality], ...] = (
    (1, ("image_token_id", "image_token_index"), "get_image_features", images),
    (2, ("video_token_id", "video_token_index"), "get_video_features", images),
    (3, ("audio_token_id", "audio_token_index"), EMBED_AUDIO, audio),
)
# Keywords that state the type of each token, computed from the token types; 0 is text.
TOKEN_TYPE_KEYWORDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mm_token_type_ids": torch.Tensor.clone,
    "moe_mm_token_type_ids": torch.Tensor.clone,
    "image_embeds_position_mask": lambda types: (types == 1).long(),
}


# As in "Image features and image tokens do not match, tokens: 2, features: 750".
_FEATURES = re.compile(r"do not match.*features:? (?P<count>\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PlaceholderSpan:
    """A run of `count` placeholder tokens in each sample."""

    token_type: int
    token_id: int
    count: int


def placeholder_spans(
    spec: InputSpec,
) -> tuple[ModelInputs, list[PlaceholderSpan], list[Modality]]:
    """The inputs that the model embeds among its tokens.

    Returns:
        The keywords of the embedded inputs, their placeholders, and the modalities that the
        model takes without placeholders.
    """
    embedded, spans, separate = ModelInputs({}), list[PlaceholderSpan](), list[Modality]()
    for token_type, names, method, modality in _EMBEDDED:
        keyword = modality.keyword(spec)
        if keyword is None or keyword in embedded.keywords:
            continue
        token_id = spec.config_value(*names)
        found = None
        if isinstance(token_id, int) and "input_ids" in spec.accepted:
            found = _first_embeddable(spec, method, modality.layouts(spec), token_id)
        if found is None:
            separate.append(modality)
            continue
        separate = [other for other in separate if other is not modality]
        layout, count = found
        embedded.keywords |= layout.keywords
        embedded.notes.append(layout.note)
        spans.append(PlaceholderSpan(token_type, token_id, count))
    if images in separate and "image_embeds_position_mask" in spec.accepted:
        # the mask marks the placeholders, which have no token id
        count = spec.config_int("latent_query_num", default=1)
        spans.append(PlaceholderSpan(1, plain_token_id(spec.model), count))
    return embedded, spans, list(dict.fromkeys(separate))


def tokens_with_placeholders(
    spec: InputSpec, spans: Sequence[PlaceholderSpan]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and token types, both `[batch, tokens]`, with the spans after a first text token.

    There are `context` tokens, or more if the spans need them.
    """
    if not spans:
        ids = token_ids(spec.model, spec.batch, spec.context)
        return ids, torch.zeros_like(ids)
    check_input_size(spec.batch, sum(span.count for span in spans))
    plain = plain_token_id(spec.model)
    row, types = [plain], [0]
    for span in spans:
        row += [span.token_id] * span.count + [plain]
        types += [span.token_type] * span.count + [0]
    padding = max(spec.context - len(row), 0)
    row, types = row + [plain] * padding, types + [0] * padding
    ids, token_types = (torch.tensor(values).repeat(spec.batch, 1) for values in (row, types))
    return ids, token_types


def placeholder_note(count: int, length: int, context: int) -> str:
    """The note on how many of the tokens are placeholders."""
    note = f"{count} of the {length} tokens are placeholders for an image or audio"
    return note if length == context else f"{note}; they do not fit in a context of {context}"


def has_placeholders(model: HuggingFaceModel) -> bool:
    """Whether the model replaces placeholder tokens by the embeddings of images or audio."""
    return any(hasattr(module, "get_placeholder_mask") for module in _unrepeated_modules(model))


def _unrepeated_modules(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield a module and its descendants, without those in a `ModuleList`."""
    yield module
    for child in module.children():
        if not isinstance(child, torch.nn.ModuleList):
            yield from _unrepeated_modules(child)


def _first_embeddable(
    spec: InputSpec, method: str, layouts: Iterable[Layout], token_id: int
) -> tuple[Layout, int] | None:
    """The first layout that the model can embed, and the number of embeddings per sample."""
    embed = _embed_functions(spec, method)
    for layout in layouts:
        keywords = {name: value for name, value in layout.keywords.items() if name in spec.accepted}
        if embed:
            count = embedding_count(spec, method, layout) // spec.batch
            keywords = _without_masks_of_embeddings(keywords, embed)
        else:
            count = _count_by_forward(spec, keywords, token_id)
        if count:
            return Layout(keywords, layout.note), count
    return None


def _without_masks_of_embeddings(
    keywords: Keywords, embed: Sequence[Callable[..., Any]]
) -> Keywords:
    """Without the masks that the embedding method does not read.

    The forward selects embeddings by them, not frames or pixels; without one, it takes all.
    """
    read = set().union(*map(parameters, embed))
    return {
        name: value
        for name, value in keywords.items()
        if name in read or not name.endswith("_mask")
    }


def _count_by_forward(spec: InputSpec, keywords: Keywords, token_id: int) -> int:
    """The number of embeddings per sample that a forward without an embedding method demands.

    It compares their number with that of the placeholders, and its error states both. Two
    placeholders in a row show that they stand for one embedding each.
    """
    demanded = _FEATURES.search(_failure(spec, keywords, token_id, 2))
    count = int(demanded["count"]) // spec.batch if demanded else 0
    return count if count and not _failure(spec, keywords, token_id, count) else 0


def _failure(spec: InputSpec, keywords: Keywords, token_id: int, count: int) -> str:
    """What a forward with so many placeholders per sample raises; empty if it runs."""
    check_input_size(spec.batch, count)
    ids, _ = tokens_with_placeholders(spec, [PlaceholderSpan(0, token_id, count)])
    try:
        with restored(spec.model), evaluating_partially():
            spec.model(**keywords, input_ids=ids)
    except Exception as error:  # a wrong layout may raise anything
        return str(error) or type(error).__name__
    return ""


def _embed_functions(spec: InputSpec, method: str) -> list[Callable[..., Any]]:
    """The model's method of this name, and that of the model inside its head; either may lack."""
    models = (spec.model, getattr(spec.model, "model", None))
    return [getattr(model, method) for model in models if hasattr(model, method)]


def embedding_count(spec: InputSpec, method: str, layout: Layout) -> int:
    """The number of embeddings that a model computes of a layout.

    Args:
        spec: The model.
        method: Its method that computes them.
        layout: The keywords of an image or audio.

    Returns:
        The count for all samples together; 0 if the model cannot read the layout.
    """
    embed = _embed_functions(spec, method)
    if not embed:
        return 0
    named = set().union(*map(parameters, embed)) & set(spec.accepted)
    keywords = {name: value for name, value in layout.keywords.items() if name in named}
    try:
        with restored(spec.model), evaluating_partially():
            features = embed[0](**keywords)
    except Exception:  # a wrong layout may raise anything
        return 0
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(features, name, None) is not None:
            features = getattr(features, name)
            break
    return sum(tensor.numel() // tensor.shape[-1] for tensor in tensors_in(features))
