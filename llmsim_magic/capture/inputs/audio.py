"""Sound, as spectrograms or as samples."""

from collections.abc import Iterator

import torch

from llmsim_magic.capture.inputs.modality import Layout
from llmsim_magic.capture.inputs.signature import InputSpec, held

AUDIO = ("audio", "speech", "sound", "encoder")
_KEYWORDS = (
    "input_features",
    "input_values",
    "audio_mel",
    "audio_input_features",
    "audio_values",
    "spectrogram",
    "mel_spectrogram",
)
USUAL_FRAMES = 1000  # ten seconds of spectrogram
USUAL_SAMPLES = 61_440  # some seconds; whole frames of any usual length
USUAL_MELS = (80, 128, 160, 320)


def keyword(ask: InputSpec) -> str | None:
    """The keyword that takes sound, or None for a model that hears nothing."""
    return ask.keyword(_KEYWORDS)


def frames(ask: InputSpec) -> int:
    """Frames of a spectrogram: the config's own length, or a usual one."""
    positions = ask.fact("max_source_positions", near=AUDIO)
    if isinstance(positions, int):
        return 2 * positions
    length = ask.fact("max_length", near=AUDIO)
    return length if isinstance(length, int) and length > 20 else USUAL_FRAMES


def samples(ask: InputSpec) -> int:
    """Samples of a waveform: as many as make `context` positions, or a usual number."""
    kernels, strides = ask.fact("conv_kernel", near=AUDIO), ask.fact("conv_stride", near=AUDIO)
    if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)):
        count = max(ask.context, 2)
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            count = (count - 1) * stride + kernel
        return count
    return USUAL_SAMPLES


def layouts(ask: InputSpec) -> Iterator[Layout]:
    """Ways to hand over one sound of each sample, the likeliest first."""
    main = keyword(ask)
    if main is None:
        return
    families = (_spectrograms, _waveforms)
    if main == "input_values" and ask.fact("num_mel_bins", near=AUDIO) is None:
        families = (_waveforms, _spectrograms)
    for family in families:
        yield from family(ask, main)


def _spectrograms(ask: InputSpec, main: str) -> Iterator[Layout]:
    """`[batch, mels, frames]` or `[batch, frames, mels]`, with or without one channel."""
    batch, length = ask.batch, frames(ask)
    held(batch, length)
    whole = torch.ones(batch, length, dtype=torch.long)
    companions = {
        "input_features_mask": whole,
        "feature_attention_mask": whole,
        "audio_mel_mask": torch.zeros(batch, length, dtype=torch.bool),
        "audio_feature_lengths": torch.full((batch,), length),
        "feature_lens": torch.full((batch,), length),
        "is_longer": torch.zeros(batch, 1, dtype=torch.bool),
    }
    said = f"a sound of {length} frames"
    if isinstance(ask.fact("max_source_positions", near=AUDIO), int):
        said = f"the model fixes its sound at {length} frames; context is the text's"
    for mels in _mels(ask):
        for shape in ((mels, length), (length, mels), (1, length, mels)):
            yield Layout({main: ask.unknown(batch, *shape), **companions}, said)


def _waveforms(ask: InputSpec, main: str) -> Iterator[Layout]:
    """`[batch, samples]`, or with a dimension for one channel or two."""
    count = samples(ask)
    held(ask.batch, count)
    audible = torch.ones(ask.batch, count, dtype=torch.long)
    for channels in ((), (1,), (2,)):
        sound = ask.unknown(ask.batch, *channels, count)
        yield Layout({main: sound, "padding_mask": audible}, f"a sound of {count} samples")


def _mels(ask: InputSpec) -> tuple[int, ...]:
    """Values in a frame: what the config says, or the usual numbers where it does not."""
    names = (
        "num_mel_bins",
        "n_mels",
        "feature_size",
        "input_feat_size",
        "input_feat_per_channel",
        "feature_projection_input_dim",
        "num_features",
        "input_dim",
        "input_size",
    )
    said = ask.number(*names, near=AUDIO, default=0)
    return (said,) if said else USUAL_MELS
