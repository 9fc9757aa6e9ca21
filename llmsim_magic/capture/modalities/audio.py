"""Audio inputs, as spectrograms or as waveforms."""

from collections.abc import Iterator

import torch

from llmsim_magic.capture.modalities.modality import Layout
from llmsim_magic.capture.modalities.signature import InputSpec, check_input_size

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
DEFAULT_FRAMES = 1000  # ten seconds of spectrogram
DEFAULT_SAMPLES = 61_440  # a few seconds, divisible by all usual frame lengths
_TOKENS = {"input_ids", "decoder_input_ids"}
DEFAULT_MEL_BINS = (80, 128, 160, 320)


def keyword(spec: InputSpec) -> str | None:
    """The forward's keyword for audio; None for a model without audio input."""
    return spec.first_accepted(_KEYWORDS)


def frame_count(spec: InputSpec) -> int:
    """The number of frames in a spectrogram, from the config or by default."""
    positions = spec.config_value("max_source_positions", prefer=AUDIO)
    if isinstance(positions, int):
        return 2 * positions
    length = spec.config_value("max_length", prefer=AUDIO)
    return length if isinstance(length, int) and length > 20 else DEFAULT_FRAMES


def sample_count(spec: InputSpec) -> int:
    """The number of samples that make `context` positions, or by default where unknown."""
    kernels = spec.config_value("conv_kernel", prefer=AUDIO)
    strides = spec.config_value("conv_stride", prefer=AUDIO)
    if isinstance(kernels, (list, tuple)) and isinstance(strides, (list, tuple)):
        count = max(spec.context, 2)
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            count = (count - 1) * stride + kernel
        return count
    return DEFAULT_SAMPLES


def layouts(spec: InputSpec, length: int | None = None) -> Iterator[Layout]:
    """Yield layouts of one audio input per sample, the most likely first.

    Args:
        spec: The model and its batch size.
        length: The number of frames or samples; None for that of the config or by default.
    """
    main = keyword(spec)
    if main is None:
        return
    families = (_spectrograms, _waveforms)
    if main == "input_values" and spec.config_value("num_mel_bins", prefer=AUDIO) is None:
        families = (_waveforms, _spectrograms)
    for family in families:
        yield from family(spec, main, length)


def _spectrograms(spec: InputSpec, main: str, length: int | None) -> Iterator[Layout]:
    """`[batch, mel bins, frames]` or `[batch, frames, mel bins]`, with or without one channel."""
    batch, frames = spec.batch, length or frame_count(spec)
    check_input_size(batch, frames)
    all_valid = torch.ones(batch, frames, dtype=torch.long)
    companions = {
        "input_features_mask": all_valid,
        "feature_attention_mask": all_valid,
        "audio_mel_mask": torch.zeros(batch, frames, dtype=torch.bool),
        "audio_feature_lengths": torch.full((batch,), frames),
        "feature_lens": torch.full((batch,), frames),
        "is_longer": torch.zeros(batch, 1, dtype=torch.bool),
    }
    note = f"the audio input has {frames} frames"
    if not length and isinstance(spec.config_value("max_source_positions", prefer=AUDIO), int):
        note = f"the config sets an audio input of {frames} frames"
        if _TOKENS & set(spec.accepted):
            note += "; context counts text tokens"
    for mel_bins in _mel_bins(spec):
        for shape in ((mel_bins, frames), (frames, mel_bins), (1, frames, mel_bins)):
            yield Layout({main: spec.meta_tensor(batch, *shape), **companions}, note)
        if "feature_lens" in spec.accepted:
            packed = spec.meta_tensor(mel_bins, batch * frames)
            yield Layout({main: packed, **companions}, f"{note}, all samples in one sequence")
        for stacked in _stacked_frames(spec):
            features = spec.meta_tensor(batch, frames, mel_bins * stacked)
            yield Layout({main: features, **companions}, f"{note}, each of {stacked} stacked")


def _waveforms(spec: InputSpec, main: str, length: int | None) -> Iterator[Layout]:
    """`[batch, samples]` or `[batch, channels, samples]` with one or two channels."""
    samples = length or sample_count(spec)
    check_input_size(spec.batch, samples)
    all_valid = torch.ones(spec.batch, samples, dtype=torch.long)
    for channels in ((), (1,), (2,)):
        waveform = spec.meta_tensor(spec.batch, *channels, samples)
        note = f"the audio input has {samples} samples"
        yield Layout({main: waveform, "padding_mask": all_valid}, note)


def _stacked_frames(spec: InputSpec) -> tuple[int, ...]:
    """How many vectors of mel bins may be stacked to one: the config's number, or usual ones."""
    if spec.config_value("num_mel_bins", prefer=AUDIO) is None:
        return ()
    stacked = spec.config_int("num_stacked_frames", prefer=AUDIO, default=0)
    return (stacked,) if stacked else (2, 4)


def _mel_bins(spec: InputSpec) -> tuple[int, ...]:
    """The number of mel bins in the config, or the usual numbers to try."""
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
    mel_bins = spec.config_int(*names, prefer=AUDIO, default=0)
    return (mel_bins,) if mel_bins else DEFAULT_MEL_BINS
