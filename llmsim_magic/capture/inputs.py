"""What a forward pass is given, from the forward's signature and the config."""

import importlib
import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.workload import Workload

META = torch.device("meta")
HuggingFaceModel: TypeAlias = Any  # an nn.Module with a config, as transformers builds it


@dataclass(slots=True)
class Inputs:
    """Keywords of one forward, and what the report should say of them."""

    keywords: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def prefill_inputs(model: HuggingFaceModel, workload: Workload) -> Inputs:
    """The model reads `context` tokens, or the image or sound of the size it fixes itself.

    An encoder-decoder reads `context` tokens and decodes its first one.
    """
    inputs = _encoder_inputs(model, workload.batch, workload.context)
    if _is_encoder_decoder(model):
        inputs.keywords["decoder_input_ids"] = _tokens(model, workload.batch, 1)
        inputs.notes.append("prefill: the encoder reads its input, the decoder its first token")
    return inputs


def priming_inputs(model: HuggingFaceModel, workload: Workload) -> Inputs:
    """What fills the cache with `context` tokens before a decode step."""
    inputs = _encoder_inputs(model, workload.batch, workload.context)
    if _is_encoder_decoder(model):
        inputs.keywords["decoder_input_ids"] = _tokens(model, workload.batch, workload.context)
    return inputs


def decode_inputs(model: HuggingFaceModel, workload: Workload, state: dict[str, Any]) -> Inputs:
    """One new token, and the state that the priming pass returned."""
    keywords: dict[str, Any] = dict(state)
    tokens = _tokens(model, workload.batch, 1)
    keywords["decoder_input_ids" if _is_encoder_decoder(model) else "input_ids"] = tokens
    if "use_cache" in _parameters(model):
        keywords["use_cache"] = True
    return Inputs(keywords)


def state_of(model: HuggingFaceModel, output: Any) -> dict[str, Any]:
    """The state that a pass hands to the next: what it returns under a name that it also takes.

    So a KV cache, a recurrent state and, for an encoder-decoder, the encoder's own output.
    """
    if not hasattr(output, "items"):
        return {}
    taken = _parameters(model)
    state = {
        key: value
        for key, value in output.items()
        if key in taken and value is not None and not isinstance(value, torch.Tensor)
    }
    hidden = getattr(output, "encoder_last_hidden_state", None)
    if state and hidden is not None:
        outputs = importlib.import_module("transformers.modeling_outputs")
        state["encoder_outputs"] = outputs.BaseModelOutput(last_hidden_state=hidden)
    return state


def is_huggingface(model: torch.nn.Module) -> bool:
    """Whether a module carries a config that says what it reads."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def longest_context(model: HuggingFaceModel) -> int | None:
    """The tokens that a learned position table has rows for; None where there is no such table.

    A table is an embedding, not of the vocabulary, of as many rows as the config declares
    positions; rows up to a padding index or an offset hold no position.
    """
    declared = set(_declared(model.config))
    vocabulary = {getattr(text, "vocab_size", None) for text in _text_configs(model.config)}
    limits = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.shape[0] not in vocabulary:
            rows = module.weight.shape[0]
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            offset = int(getattr(module, "offset", 0))
            if rows - offset in declared:
                limits.append(rows - max(padding, offset))
    return min(limits, default=None)


def declared_context(model: HuggingFaceModel) -> int | None:
    """The longest context that the config says the model is meant for."""
    return min(_declared(model.config), default=None)


def _declared(config: Any) -> list[int]:
    names = ("max_position_embeddings", "max_target_positions")
    texts = _text_configs(config)
    found = [getattr(text, name, None) for text in texts for name in names]
    return [number for number in found if isinstance(number, int)]


def fitting(model: HuggingFaceModel, workload: Workload, name: str, *, shorten: bool) -> Workload:
    """The workload, held to the rows of a learned position table.

    A context beyond them is cut with `shorten`; otherwise it raises `InvalidValue`.
    """
    limit = longest_context(model) if _reads_tokens(model) else None
    if limit is None:
        return workload
    most = limit - (workload.phase == "decode")
    if workload.context <= most:
        return workload
    if shorten:
        return Workload(workload.phase, workload.batch, most)
    raise InvalidValue(
        f"{name}: context",
        workload.context,
        f"within its learned position table (at most {most} in {workload.phase})",
    )


def context_note(model: HuggingFaceModel, workload: Workload) -> list[str]:
    """A remark where the context is longer than the config declares and positions still compute."""
    declared = declared_context(model)
    tokens = workload.context + (workload.phase == "decode")
    if declared is None or not _reads_tokens(model) or tokens <= declared:
        return []
    return [f"{tokens} tokens are more than the {declared} positions that the config declares"]


def _encoder_inputs(model: HuggingFaceModel, batch: int, context: int) -> Inputs:
    taken = _parameters(model)
    config = model.config
    inputs = Inputs({})
    main = getattr(model, "main_input_name", "input_ids")
    if main == "input_ids":
        inputs.keywords["input_ids"] = _tokens(model, batch, context)
        if "pixel_values" in taken and not _generates(model) and hasattr(config, "vision_config"):
            inputs.keywords["pixel_values"] = _image(config.vision_config, batch, model, inputs)
    elif main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        inputs.keywords["pixel_values"] = _image(vision, batch, model, inputs)
    elif main == "input_features" and hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions
        shape = (batch, config.num_mel_bins, frames)
        inputs.keywords["input_features"] = torch.empty(shape, dtype=model.dtype, device=META)
        inputs.notes.append(f"the model fixes its sound at {frames} frames; context is the text's")
    else:
        raise CannotTrace(
            f"{type(model).__name__} reads {main}, an input that is not built yet from a config"
        )
    if "use_cache" in taken:
        inputs.keywords["use_cache"] = True
    return inputs


def _image(vision: Any, batch: int, model: HuggingFaceModel, inputs: Inputs) -> torch.Tensor:
    size = getattr(vision, "image_size", None)
    if not isinstance(size, (int, list, tuple)):
        raise CannotTrace(f"{type(model).__name__}: its config names no image_size")
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    inputs.notes.append(f"the model fixes its image at {height} × {width}")
    return torch.empty((batch, channels, height, width), dtype=model.dtype, device=META)


def _tokens(model: HuggingFaceModel, batch: int, count: int) -> torch.Tensor:
    """Token ids `[batch, count]` on the host, where their values are known; none is special."""
    configs = (model.config, *_text_configs(model.config))
    values = [getattr(c, name) for c in configs for name in vars(c) if name.endswith("_token_id")]
    special = {
        number for value in values for number in (value if isinstance(value, list) else [value])
    }
    plain = next(number for number in itertools.count() if number not in special)
    return torch.full((batch, count), plain, dtype=torch.long)


def _parameters(model: HuggingFaceModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _is_encoder_decoder(model: HuggingFaceModel) -> bool:
    return "decoder_input_ids" in _parameters(model)


def _reads_tokens(model: HuggingFaceModel) -> bool:
    return "input_ids" in _parameters(model) or _is_encoder_decoder(model)


def _generates(model: HuggingFaceModel) -> bool:
    can = getattr(model, "can_generate", None)
    return bool(can is not None and can())


def _text_configs(config: Any) -> list[Any]:
    text = config.get_text_config()
    return [text] if text is config else [text, config]
