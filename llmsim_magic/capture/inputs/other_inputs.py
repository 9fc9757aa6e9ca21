"""Keywords beside tokens, pixels and sound: boxes, series, states of other models."""

from collections.abc import Callable
from typing import Any

import torch

from llmsim_magic.capture.inputs import images
from llmsim_magic.capture.inputs.signature import InputSpec
from llmsim_magic.capture.inputs.text import tokens

Recipe = Callable[[InputSpec], Any]


def _ids(ask: InputSpec) -> torch.Tensor:
    return tokens(ask.model, ask.batch, ask.context)


def _first(ask: InputSpec) -> torch.Tensor:
    return tokens(ask.model, ask.batch, 1)


def _whole(ask: InputSpec) -> torch.Tensor:
    return torch.ones(ask.batch, ask.context, dtype=torch.long)


def _zeros(ask: InputSpec) -> torch.Tensor:
    return torch.zeros(ask.batch, ask.context, dtype=torch.long)


def _hidden(ask: InputSpec) -> torch.Tensor:
    width = ask.number("input_dim", "hidden_size", "d_model", "hidden_dim", "dim", default=1)
    return ask.unknown(ask.batch, ask.context, width)


def _boxes(ask: InputSpec) -> torch.Tensor:
    return torch.zeros(ask.batch, ask.context, 4, dtype=torch.long)


def _queries(ask: InputSpec) -> torch.Tensor:
    width = ask.number("hidden_size", default=1)
    return ask.unknown(ask.batch, ask.number("num_query_tokens", default=32), width)


def _regions(ask: InputSpec) -> torch.Tensor:
    width = ask.number("visual_feat_dim", "visual_embedding_dim", default=2048)
    return ask.unknown(ask.batch, 36, width)  # regions that a detector usually hands over


def _region_places(ask: InputSpec) -> torch.Tensor:
    return ask.unknown(ask.batch, 36, ask.number("visual_pos_dim", default=4))


def _image(ask: InputSpec) -> torch.Tensor:
    channels = ask.number("num_channels", near=images.VISION, default=3)
    return ask.unknown(ask.batch, channels, *images.size(ask))


def _image_seen(ask: InputSpec) -> torch.Tensor:
    """Every token sees the one image of its sample."""
    return torch.ones(ask.batch, ask.context, 1, dtype=torch.long)


def _half_masked(ask: InputSpec) -> torch.Tensor:
    """The second half of the patches is hidden, the first is read."""
    height, width = images.size(ask)
    patch = ask.number("patch_size", default=16)
    films = ask.number("num_frames", default=1) // ask.number("tubelet_size", default=1)
    count = max(films, 1) * (height // patch) * (width // patch)
    return (torch.arange(count) >= count // 2).expand(ask.batch, count)


def _past(ask: InputSpec) -> int:
    """Steps of a series that are read: its context, and the furthest lag before it."""
    length = ask.number("context_length", "prediction_length", default=ask.context)
    lags = ask.fact("lags_sequence") or [0]
    return int(length + (max(lags) if ask.fact("lags_sequence") else 0))


def _series(ask: InputSpec) -> torch.Tensor:
    channels = ask.number("num_input_channels", "input_size", default=1)
    flat = ask.fact("lags_sequence") is not None and channels == 1
    return ask.unknown(ask.batch, _past(ask), *(() if flat else (channels,)))


def _time_features(length: Callable[[InputSpec], int]) -> Recipe:
    def recipe(ask: InputSpec) -> torch.Tensor:
        count = ask.fact("num_time_features") or 0
        return ask.unknown(ask.batch, length(ask), count)

    return recipe


def _future(ask: InputSpec) -> int:
    return ask.number("prediction_length", default=1)


def _future_values(ask: InputSpec) -> torch.Tensor:
    channels = ask.number("num_input_channels", "input_size", default=1)
    flat = ask.fact("lags_sequence") is not None and channels == 1
    return ask.unknown(ask.batch, _future(ask), *(() if flat else (channels,)))


def _observed(ask: InputSpec) -> torch.Tensor:
    return torch.ones_like(_series(ask), device="cpu", dtype=torch.bool)


def _states(ask: InputSpec) -> torch.Tensor:
    return ask.unknown(ask.batch, ask.context, ask.number("state_dim", "max_state_dim", default=1))


def _actions(ask: InputSpec) -> torch.Tensor:
    return ask.unknown(ask.batch, ask.context, ask.number("act_dim", default=1))


def _rewards(ask: InputSpec) -> torch.Tensor:
    return ask.unknown(ask.batch, ask.context, 1)


def _steps(ask: InputSpec) -> torch.Tensor:
    return torch.arange(ask.context).expand(ask.batch, ask.context)


def _speaker(ask: InputSpec) -> torch.Tensor:
    return ask.unknown(
        ask.batch, ask.number("speaker_embedding_dim", "speaker_embed_dim", default=512)
    )


# What a forward is given where it cannot do without.
IF_REQUIRED: dict[str, Recipe] = {
    "input_ids": _ids,
    "attention_mask": _whole,
    "token_type_ids": _zeros,
    "position_ids": _steps,
    "decoder_input_ids": _first,
    "hidden_states": _hidden,
    "inputs_embeds": _hidden,
    "encoder_hidden_states": _hidden,
    "encoder_embeds": _hidden,
    "inputs": _hidden,
    "pixel_values": _image,
    "prompt_pixel_values": _image,
    "prompt_masks": _image,
    "bool_masked_pos": _half_masked,
}
# What it is given as well where it does not run without.
IF_TAKEN: dict[str, Recipe] = {
    "bbox": _boxes,
    "qformer_input_ids": _ids,
    "protein_input_ids": _ids,
    "query_embeds": _queries,
    "image_attention_mask": _image_seen,
    "task_inputs": lambda ask: tokens(ask.model, ask.batch, ask.number("task_seq_len", default=77)),
    "visual_feats": _regions,
    "visual_embeds": _regions,
    "visual_pos": _region_places,
    "conditional_pixel_values": _image,
    "past_values": _series,
    "past_observed_mask": _observed,
    "past_time_features": _time_features(_past),
    "future_time_features": _time_features(_future),
    "future_values": _future_values,
    "states": _states,
    "actions": _actions,
    "rewards": _rewards,
    "returns_to_go": _rewards,
    "timesteps": _steps,
    "speaker_embeddings": _speaker,
}
RECIPES = IF_REQUIRED | IF_TAKEN
