"""Inputs other than tokens, pixels and audio: boxes, time series, hidden states."""

from collections.abc import Callable, Sequence
from typing import Any, get_origin

import torch

from llmsim_magic.capture.modalities import images, video_session
from llmsim_magic.capture.modalities.signature import InputSpec
from llmsim_magic.capture.modalities.text import token_ids

MakeInput = Callable[[InputSpec], Any]


def _token_ids(spec: InputSpec) -> torch.Tensor:
    return token_ids(spec.model, spec.batch, spec.context)


def _first_token(spec: InputSpec) -> torch.Tensor:
    return token_ids(spec.model, spec.batch, 1)


def _ones(spec: InputSpec) -> torch.Tensor:
    return torch.ones(spec.batch, spec.context, dtype=torch.long)


def _zeros(spec: InputSpec) -> torch.Tensor:
    return torch.zeros(spec.batch, spec.context, dtype=torch.long)


def _hidden_states(spec: InputSpec) -> torch.Tensor:
    width = spec.config_int("input_dim", "hidden_size", "d_model", "hidden_dim", "dim", default=1)
    return spec.meta_tensor(spec.batch, spec.context, width)


def _encoder_states(spec: InputSpec) -> torch.Tensor:
    """What a model with cross-attention reads of an encoder, `[batch, context, width]`."""
    own = spec.config_int("hidden_size", "d_model", "hidden_dim", "dim", default=1)
    width = spec.config_int("encoder_hidden_size", "cross_hidden_size", default=own)
    return spec.meta_tensor(spec.batch, spec.context, width)


def _boxes(spec: InputSpec) -> torch.Tensor:
    return torch.zeros(spec.batch, spec.context, 4, dtype=torch.long)


def _queries(spec: InputSpec) -> torch.Tensor:
    width = spec.config_int("hidden_size", default=1)
    return spec.meta_tensor(spec.batch, spec.config_int("num_query_tokens", default=32), width)


def _regions(spec: InputSpec) -> torch.Tensor:
    width = spec.config_int("visual_feat_dim", "visual_embedding_dim", default=2048)
    return spec.meta_tensor(
        spec.batch, 36, width
    )  # the usual number of regions of an object detector


def _region_boxes(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(spec.batch, 36, spec.config_int("visual_pos_dim", default=4))


def _image(spec: InputSpec) -> torch.Tensor:
    channels = spec.config_int("num_channels", prefer=images.VISION, default=3)
    return spec.meta_tensor(spec.batch, channels, *images.image_size(spec))


def _image_mask(spec: InputSpec) -> torch.Tensor:
    """Every token attends to the one image of its sample."""
    return torch.ones(spec.batch, spec.context, 1, dtype=torch.long)


def _masked_positions(spec: InputSpec) -> torch.Tensor:
    """Mask the second half of the patches."""
    height, width = images.image_size(spec)
    patch = spec.config_int("patch_size", default=16)
    frames = spec.config_int("num_frames", default=1) // spec.config_int("tubelet_size", default=1)
    count = max(frames, 1) * (height // patch) * (width // patch)
    return (torch.arange(count) >= count // 2).expand(spec.batch, count)


def _past_steps(spec: InputSpec) -> int:
    """Past time steps: the context length plus the longest lag."""
    length = spec.config_int("context_length", "prediction_length", default=spec.context)
    lags = spec.config_value("lags_sequence") or [0]
    return int(length + (max(lags) if spec.config_value("lags_sequence") else 0))


def _series(spec: InputSpec) -> torch.Tensor:
    """`[batch, steps]` of one channel, or `[batch, steps, channels]`."""
    return spec.meta_tensor(spec.batch, _past_steps(spec), *_channels(spec))


def _one_or_more_series(spec: InputSpec) -> Any:
    """The series of all samples, as a list where the forward is annotated with a sequence."""
    series = _series(spec)
    if get_origin(spec.accepted["past_values"].annotation) is Sequence:
        return list(series.unbind())
    return series


def _channels(spec: InputSpec) -> tuple[int, ...]:
    """The last dimension of a series; none if the config knows no channels, or lags of one."""
    channels = spec.config_int("num_input_channels", "input_size", default=0)
    has_lags = spec.config_value("lags_sequence") is not None
    return () if not channels or (has_lags and channels == 1) else (channels,)


def _unpadded_series(spec: InputSpec) -> torch.Tensor:
    return torch.zeros(spec.batch, _past_steps(spec), dtype=torch.long)


def _frequency(spec: InputSpec) -> torch.Tensor:
    return torch.zeros(spec.batch, 1, dtype=torch.long)


def _time_features(length: Callable[[InputSpec], int]) -> MakeInput:
    def make(spec: InputSpec) -> torch.Tensor:
        count = spec.config_value("num_time_features") or 0
        return spec.meta_tensor(spec.batch, length(spec), count)

    return make


def _future_steps(spec: InputSpec) -> int:
    return spec.config_int("prediction_length", default=1)


def _future_values(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(spec.batch, _future_steps(spec), *_channels(spec))


def _observed_mask(spec: InputSpec) -> torch.Tensor:
    return torch.ones_like(_series(spec), device="cpu", dtype=torch.bool)


def _zero_per_sample(spec: InputSpec) -> torch.Tensor:
    return torch.zeros(spec.batch, dtype=torch.long)


def _first_frame(spec: InputSpec) -> int:
    return video_session.FRAME


def _states(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(
        spec.batch, spec.context, spec.config_int("state_dim", "max_state_dim", default=1)
    )


def _actions(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(spec.batch, spec.context, spec.config_int("act_dim", default=1))


def _rewards(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(spec.batch, spec.context, 1)


def _positions(spec: InputSpec) -> torch.Tensor:
    return torch.arange(spec.context).expand(spec.batch, spec.context)


def _speaker(spec: InputSpec) -> torch.Tensor:
    return spec.meta_tensor(
        spec.batch, spec.config_int("speaker_embedding_dim", "speaker_embed_dim", default=512)
    )


# Used where the forward requires the keyword.
REQUIRED_INPUTS: dict[str, MakeInput] = {
    "input_ids": _token_ids,
    "attention_mask": _ones,
    "token_type_ids": _zeros,
    "position_ids": _positions,
    "decoder_input_ids": _first_token,
    "hidden_states": _hidden_states,
    "inputs_embeds": _hidden_states,
    "encoder_embeds": _hidden_states,
    "inputs": _hidden_states,
    "pixel_values": _image,
    "prompt_pixel_values": _image,
    "prompt_masks": _image,
    "bool_masked_pos": _masked_positions,
    video_session.KEYWORD: video_session.video_session,
}
# Used only after a forward failed without the optional keywords.
OPTIONAL_INPUTS: dict[str, MakeInput] = {
    "bbox": _boxes,
    "encoder_hidden_states": _encoder_states,
    "qformer_input_ids": _token_ids,
    "protein_input_ids": _token_ids,
    "query_embeds": _queries,
    "image_attention_mask": _image_mask,
    "task_inputs": lambda spec: token_ids(
        spec.model, spec.batch, spec.config_int("task_seq_len", default=77)
    ),
    "visual_feats": _regions,
    "visual_embeds": _regions,
    "visual_pos": _region_boxes,
    "conditional_pixel_values": _image,
    "past_values": _one_or_more_series,
    "past_values_padding": _unpadded_series,
    "freq": _frequency,
    "past_observed_mask": _observed_mask,
    "past_time_features": _time_features(_past_steps),
    "future_time_features": _time_features(_future_steps),
    "future_values": _future_values,
    "states": _states,
    "actions": _actions,
    "rewards": _rewards,
    "returns_to_go": _rewards,
    "timesteps": _positions,
    "speaker_embeddings": _speaker,
    "lang_ids": _zero_per_sample,
    "frame_idx": _first_frame,
}
OTHER_INPUTS = REQUIRED_INPUTS | OPTIONAL_INPUTS
