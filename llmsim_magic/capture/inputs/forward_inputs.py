"""What a forward pass is given, from the forward's signature and the config."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from llmsim_magic.capture.inputs import audio, images
from llmsim_magic.capture.inputs.modality import Layout, Modality
from llmsim_magic.capture.inputs.other_inputs import IF_TAKEN, RECIPES
from llmsim_magic.capture.inputs.signature import HuggingFaceModel, InputSpec, Keywords, parameters
from llmsim_magic.capture.inputs.text import (
    Span,
    coded_tokens,
    plain_token,
    tokens,
    tokens_around,
)
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.partial_evaluation import evaluating_partially
from llmsim_magic.capture.meta.snapshot import restored
from llmsim_magic.records.errors import CannotTrace
from llmsim_magic.records.trace.workload import Workload

# What can stand among the tokens: its number in `mm_token_type_ids`, the ids of its placeholder
# and the method by which a model turns it into rows of embeddings.
_EMBEDDED: tuple[tuple[int, tuple[str, ...], str, Modality], ...] = (
    (1, ("image_token_id", "image_token_index"), "get_image_features", images),
    (2, ("video_token_id", "video_token_index"), "get_video_features", images),
    (3, ("audio_token_id", "audio_token_index"), "get_audio_features", audio),
)
# What is said of each token's kind, which is such a number, or 0 for text.
_OF_KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mm_token_type_ids": torch.Tensor.clone,
    "moe_mm_token_type_ids": torch.Tensor.clone,
    "image_embeds_position_mask": lambda kinds: (kinds == 1).long(),
}
# Keywords that go with the tokens of the priming pass, not with those of the next.
_OF_TOKENS = (
    "input_ids",
    "attention_mask",
    "image_attention_mask",
    "token_type_ids",
    "bbox",
    *_OF_KINDS,
)
_CODED = "each position holds a token of every codebook"


@dataclass(slots=True)
class Inputs:
    """Keywords of one forward, and what the report should say of them."""

    keywords: Keywords
    notes: list[str] = field(default_factory=list)


def prefill_inputs(model: HuggingFaceModel, workload: Workload) -> Iterator[Inputs]:
    """The model reads `context` tokens, or the image or sound of the size it fixes itself.

    An encoder-decoder reads `context` tokens and decodes its first one. There are several ways
    to hand over an image or a sound; the likeliest comes first.
    """
    ask = InputSpec(model, workload.batch, workload.context)
    for inputs in _with_decoder(ask, 1, _readings(ask)):
        if is_encoder_decoder(model):
            inputs.notes.append("prefill: the encoder reads its input, the decoder its first token")
        yield inputs


def priming_inputs(model: HuggingFaceModel, workload: Workload) -> Iterator[Inputs]:
    """What fills the cache with `context` tokens before a decode step.

    Where images stand among the tokens, they are tokens in the cache: text alone fills it.
    """
    ask = InputSpec(model, workload.batch, workload.context)
    yield from _with_decoder(
        ask, workload.context, _readings(ask, only_text=_has_placeholders(ask))
    )


def _with_decoder(ask: InputSpec, count: int, readings: Iterator[Inputs]) -> Iterator[Inputs]:
    """The same with `count` tokens for the decoder, where there is one to give them to."""
    if not is_encoder_decoder(ask.model):
        yield from _in_rows(ask, ask.context, readings)
        return
    plain = tokens(ask.model, ask.batch, count)
    coded = list(coded_tokens(ask, count, _codebooks(ask)))
    given = (
        Inputs(inputs.keywords | {"decoder_input_ids": ids}, [*inputs.notes, *said])
        for inputs in readings
        for ids, said in [(plain, []), *((ids, [_CODED]) for ids in coded)]
    )
    yield from _in_rows(ask, count, given)


def _in_rows(ask: InputSpec, count: int, ways: Iterator[Inputs]) -> Iterator[Inputs]:
    """Those ways first that the model takes for `count` positions or more of each sample.

    Layouts of several codebooks differ in nothing but their sizes, so that a model may read one
    of them as another: as fewer samples or positions, or as more samples that are shorter.
    """
    if not _codebooks(ask):
        yield from ways
        return
    others = []
    for inputs in ways:
        seen = _positions(ask.model, inputs.keywords)
        if seen is None or (seen[0] == ask.batch and seen[1] >= count):
            yield inputs
        else:
            others.append(inputs)
    yield from others


def _positions(model: HuggingFaceModel, keywords: Keywords) -> tuple[int, ...] | None:
    """The samples and positions of what the model makes of its tokens, where it shows that."""
    try:
        with restored(model), evaluating_partially():
            output = model(**keywords, output_hidden_states=True)
    except Exception:  # what cannot be read so says why when it is run
        return None
    states = getattr(output, "decoder_hidden_states", getattr(output, "hidden_states", None))
    return tuple(states[0].shape[:2]) if states else None


def _codebooks(ask: InputSpec) -> int:
    """Codebooks that each position holds a token of; an image's channels are none."""
    if images.keyword(ask) is not None:
        return 0
    return ask.number("num_codebooks", "num_channels", "num_quantizers", default=0)


def decode_inputs(
    model: HuggingFaceModel, workload: Workload, state: Keywords, primed: Keywords
) -> Inputs:
    """One new position in the layout of those of the priming pass, and the state it returned."""
    ask = InputSpec(model, workload.batch, 1)
    ids = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
    read = primed.get(ids, tokens(model, workload.batch, 1))
    keywords = {**state, ids: read[:, :1]}
    for name in ask.required:
        if name in RECIPES:
            keywords.setdefault(name, RECIPES[name](ask))
    if "use_cache" in ask.taken:
        keywords["use_cache"] = True
    return Inputs(keywords)


def _with_the_same_senses(
    model: HuggingFaceModel, workload: Workload, state: Keywords, primed: Keywords
) -> Inputs:
    """The same and the images or sounds of the priming pass again."""
    keywords = decode_inputs(model, workload, state, primed).keywords
    return Inputs({name: primed[name] for name in primed if name not in _OF_TOKENS} | keywords)


DecodeWay = Callable[[HuggingFaceModel, Workload, Keywords, Keywords], Inputs]
DECODE_WAYS: tuple[DecodeWay, ...] = (decode_inputs, _with_the_same_senses)


def _readings(ask: InputSpec, *, only_text: bool = False) -> Iterator[Inputs]:
    """What the model, or its encoder, reads: first with what it needs, then with all it takes.

    Raises `CannotTrace` for a forward that reads what no config describes.
    """
    missing: tuple[str, ...] = ()
    count = 0
    for inputs in _ways(ask, only_text=only_text):
        lacking = tuple(name for name in ask.required if name not in inputs.keywords)
        if lacking:
            missing = missing or lacking
            continue
        count += 1
        yield inputs
    if not count:
        raise CannotTrace(
            f"{type(ask.model).__name__} reads {', '.join(missing)}: "
            "tensors that only the model around it makes"
        )


def _ways(ask: InputSpec, *, only_text: bool) -> Iterator[Inputs]:
    """Every way to hand over the inputs, the likeliest first, not all of them complete."""
    if only_text:
        yield _with_text(ask, Inputs({}), ())
        return
    embedded, spans, beside = _among_the_tokens(ask)
    for thorough in (False, True):
        for inputs in _combined(ask, embedded, beside):
            yield _with_text(ask, inputs, spans, thorough=thorough)
    is_coded = "input_ids" in ask.taken and not is_encoder_decoder(ask.model)
    for ids in coded_tokens(ask, ask.context, _codebooks(ask) if is_coded else 0):
        for inputs in _combined(ask, Inputs({}), beside):
            said = [*inputs.notes, _CODED]
            yield _with_text(ask, Inputs(inputs.keywords | {"input_ids": ids}, said), ())
    if (beside or spans) and "input_ids" in ask.taken:
        unread = "no image or sound could be handed to it as its config stands: text alone"
        yield _with_text(ask, Inputs({}, [unread]), ())


def _among_the_tokens(ask: InputSpec) -> tuple[Inputs, list[Span], list[Modality]]:
    """What is embedded among the tokens, the places it takes there, and the senses that are not."""
    embedded, spans, beside = Inputs({}), list[Span](), list[Modality]()
    for kind, names, method, sense in _EMBEDDED:
        if sense.keyword(ask) is None or sense.keyword(ask) in embedded.keywords:
            continue
        token = ask.fact(*names)
        found = None
        if isinstance(token, int) and "input_ids" in ask.taken:
            found = _features(ask, method, sense.layouts(ask))
        if found is None:
            beside.append(sense)
            continue
        beside = [other for other in beside if other is not sense]
        layout, rows = found
        embedded.keywords |= layout.keywords
        embedded.notes.append(layout.said)
        spans.append(Span(kind, token, rows))
    if images in beside and "image_embeds_position_mask" in ask.taken:  # places without an id
        spans.append(Span(1, plain_token(ask.model), ask.number("latent_query_num", default=1)))
    return embedded, spans, list(dict.fromkeys(beside))


def _combined(ask: InputSpec, start: Inputs, senses: Sequence[Modality]) -> Iterator[Inputs]:
    """The layouts of every sense with those of the others."""
    if not senses:
        yield Inputs(dict(start.keywords), list(start.notes))
        return
    tried: list[Any] = []
    for layout in senses[0].layouts(ask):
        keywords = {name: value for name, value in layout.keywords.items() if name in ask.taken}
        shapes = {name: value.shape for name, value in keywords.items()}
        if shapes not in tried:
            tried.append(shapes)
            said = [*start.notes, layout.said]
            yield from _combined(ask, Inputs(start.keywords | keywords, said), senses[1:])


def _with_text(
    ask: InputSpec, inputs: Inputs, spans: Sequence[Span], *, thorough: bool = False
) -> Inputs:
    """The same with tokens and whatever else the forward needs, or, if thorough, can take."""
    keywords = {name: value for name, value in inputs.keywords.items() if name in ask.taken}
    notes = inputs.notes
    if "input_ids" in ask.taken:
        ids, kinds = tokens_around(ask, spans)
        ids = keywords.setdefault("input_ids", ids)
        if spans:
            told = {name: tell(kinds) for name, tell in _OF_KINDS.items() if name in ask.taken}
            keywords |= told
            count = sum(span.count for span in spans)
            notes.append(_said_of_placeholders(count, ids.shape[1], ask.context))
        if thorough and "attention_mask" in ask.taken:
            keywords["attention_mask"] = torch.ones_like(ids)
    main = () if "input_ids" in keywords else ask.main
    needed = [*main, *ask.required, *(IF_TAKEN if thorough else ())]
    for name in needed:
        if name in RECIPES and name in ask.taken and name not in keywords:
            keywords[name] = RECIPES[name](ask)
    if "use_cache" in ask.taken:
        keywords["use_cache"] = True
    return Inputs(keywords, notes)


def _said_of_placeholders(count: int, length: int, context: int) -> str:
    said = f"{count} of the {length} tokens are placeholders for an image or a sound"
    return said if length == context else f"{said}: more than a context of {context} holds"


def _has_placeholders(ask: InputSpec) -> bool:
    """Whether images or sounds stand among the tokens, rather than beside them."""
    return any(hasattr(part, "get_placeholder_mask") for part in _outside_of_lists(ask.model))


def _outside_of_lists(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A module and its parts, but for repeated layers."""
    yield module
    for child in module.children():
        if not isinstance(child, torch.nn.ModuleList):
            yield from _outside_of_lists(child)


def _features(ask: InputSpec, method: str, layouts: Iterable[Layout]) -> tuple[Layout, int] | None:
    """The first layout that the model can turn into embeddings, and how many a sample makes."""
    embed: Callable[..., Any] | None = getattr(ask.model, method, None)
    if embed is None:
        return None
    inner = getattr(getattr(ask.model, "model", None), method, embed)
    named = set(parameters(inner)) | set(parameters(embed))
    for layout in layouts:
        keywords = {name: value for name, value in layout.keywords.items() if name in ask.taken}
        rows = _embeddings(
            ask.model, embed, {name: keywords[name] for name in keywords if name in named}
        )
        if rows:
            return Layout(keywords, layout.said), rows // ask.batch
    return None


def _embeddings(model: HuggingFaceModel, embed: Callable[..., Any], keywords: Keywords) -> int:
    """How many embeddings the model makes of an input; none where it cannot read the layout."""
    try:
        with restored(model), evaluating_partially():
            features = embed(**keywords)
    except Exception:  # whatever the code of a model raises says no more than that
        return 0
    features = getattr(features, "pooler_output", features)
    return sum(tensor.numel() // tensor.shape[-1] for tensor in tensors_in(features))


def state_of(model: HuggingFaceModel, output: Any) -> Keywords:
    """The state that a pass hands to the next: what it returns under a name that it also takes.

    So a KV cache or a recurrent state.
    """
    if not hasattr(output, "items"):
        return {}
    taken = parameters(model.forward)
    return {
        key: value
        for key, value in output.items()
        if key in taken and value is not None and not isinstance(value, torch.Tensor)
    }


@contextmanager
def keeping_encoder_outputs(model: HuggingFaceModel) -> Iterator[Keywords]:
    """What the encoder of an encoder-decoder returns while this is open, for the steps to come."""
    kept: Keywords = {}
    encoder = model.get_encoder() if "encoder_outputs" in parameters(model.forward) else model

    def keep(module: torch.nn.Module, args: Any, output: Any) -> None:
        kept["encoder_outputs"] = output

    hook = encoder.register_forward_hook(keep) if encoder is not model else None
    try:
        yield kept
    finally:
        if hook is not None:
            hook.remove()


def is_encoder_decoder(model: HuggingFaceModel) -> bool:
    return "decoder_input_ids" in parameters(model.forward)
