"""The inputs of a forward pass have the layout of the model and are described."""

from collections.abc import Callable
from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.capture.inputs import forward_inputs
from llmsim_magic.records.trace.workload import Workload
from tests.helpers.real_forward import differences, real_and_meta_models
from tests.helpers.reduced_configs import candidates

BOOKS = 4
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


def musicgen() -> transformers.PretrainedConfig:
    """A row of tokens for every codebook."""
    return transformers.MusicgenDecoderConfig(
        **_SIZES,
        vocab_size=64,
        ffn_dim=48,
        num_codebooks=BOOKS,
        pad_token_id=63,
        architectures=["MusicgenForCausalLM"],
    )


def kyutai() -> transformers.PretrainedConfig:
    """A token of every codebook at each position, and one of a text."""
    return transformers.KyutaiSpeechToTextConfig(
        **_SIZES,
        codebook_vocab_size=64,
        vocab_size=60,
        ffn_dim=48,
        num_codebooks=BOOKS,
        audio_bos_token_id=63,
        audio_pad_token_id=62,
        pad_token_id=3,
        bos_token_id=59,
    )


def dia() -> transformers.PretrainedConfig:
    """A decoder of codes behind an encoder of text."""
    sizes = {**_SIZES, "intermediate_size": 48, "head_dim": 8, "vocab_size": 70}
    cross = {"cross_num_attention_heads": 4, "cross_num_key_value_heads": 4, "cross_head_dim": 8}
    return transformers.DiaConfig(
        encoder_config=sizes,
        decoder_config={**sizes, **cross, "cross_hidden_size": 32, "num_channels": BOOKS},
        delay_pattern=list(range(BOOKS)),
        eos_token_id=64,
        pad_token_id=65,
        bos_token_id=66,
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("batch", "context"), [(1, 4), (1, 8), (BOOKS, 7), (2 * BOOKS, 8)])
@pytest.mark.parametrize("config", [musicgen, kyutai, dia])
@pytest.mark.slow
def test_a_position_of_several_codebooks_is_one_position(
    config: Callable[[], Any], batch: int, context: int, phase: str
) -> None:
    modules = llmsim.trace(config(), phase=phase, batch=batch, context=context).modules
    layer = modules.index[modules.index.str.fullmatch(r"model\.(decoder\.)?layers\.1")]
    count = context if phase == "prefill" and config is not dia else 1
    assert modules.loc[layer[0], "input_shapes"][0] == (batch, count, _SIZES["hidden_size"])


def test_a_text_encoder_and_a_decoder_of_codes_are_one_model() -> None:
    text = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    codec = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "upsampling_ratios": [2]}
    config = transformers.MusicgenConfig(
        text_encoder={"model_type": "t5", **text},
        audio_encoder={"model_type": "encodec", **codec},
        decoder=musicgen().to_dict(),
        architectures=["MusicgenForConditionalGeneration"],
    )
    modules = llmsim.trace(config, batch=BOOKS, context=6).modules
    shapes = modules.loc["decoder.model.decoder.layers.1", "input_shapes"]
    assert shapes[:2] == [(BOOKS, 1, 32), (BOOKS, 6, 32)]


@pytest.mark.parametrize("context", [4, 128])
def test_a_mask_tells_which_tokens_an_image_takes(context: int) -> None:
    real = real_and_meta_models(next(candidates("kosmos-2")).config)
    workload = Workload("prefill", 2, context)
    seen = real.prefill(workload)
    keywords = next(forward_inputs.prefill_inputs(real.unreal, workload)).keywords
    latents = real.model.config.latent_query_num
    mask = keywords["image_embeds_position_mask"]
    assert mask.shape == keywords["input_ids"].shape == (2, max(context, latents + 2))
    assert mask.sum(1).tolist() == [latents] * 2
    report = llmsim.trace(real.model.config, batch=2, context=context, dtype="float32")
    assert not differences(real.model, seen, report.modules)
    assert any(f"{latents} of the" in note for note in report.trace.notes)


@pytest.mark.parametrize(
    ("model_type", "shape", "said"),
    [
        ("resnet", (1, 3, 224, 224), "the config sets no image size; 224 × 224 pixels are assumed"),
        (
            "depth_pro",
            (1, 3, 1536, 1536),
            "the model cannot read an image of its config's size; 1536 × 1536 pixels are assumed",
        ),
        (
            "videomae",
            (1, 16, 3, 224, 224),
            "the config sets an image size of 224 × 224 pixels, for a video of 16 frames",
        ),
        (
            "lfm2_vl",
            (1, 196, 768),
            "the config sets no image size; 224 × 224 pixels are assumed, cut into 14 × 14 patches",
        ),
        (
            "speech_to_text",
            (1, 1500, 80),
            "the config sets an audio input of 1500 frames; context counts text tokens",
        ),
        ("encodec", (1, 1, 61440), "the audio input has 61440 samples"),
    ],
)
def test_the_report_describes_the_image_or_audio_that_ran(
    model_type: str, shape: tuple[int, ...], said: str
) -> None:
    report = llmsim.trace(next(candidates(model_type)).config)
    assert shape in report.modules.loc["", "input_shapes"]
    assert said in report.trace.notes
