"""A model gets as many placeholders as its image or audio has embeddings."""

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.records.trace.workload import Workload
from tests.helpers.real_forward import differences, real_and_meta_models

TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = TOWER | {"vocab_size": 500, "intermediate_size": 96}
LLAMA = TEXT | {"model_type": "llama"}
IMAGE = TOWER | {"intermediate_size": 96, "patch_size": 14}
AUDIO = {"d_model": 64, "encoder_ffn_dim": 96, "encoder_layers": 2, "encoder_attention_heads": 4}


def deepseek_vl(side: int) -> transformers.PreTrainedConfig:
    return transformers.DeepseekVLConfig(
        text_config=LLAMA, vision_config=IMAGE | {"image_size": side}, image_token_id=490
    )


def deepseek_vl_hybrid() -> transformers.PreTrainedConfig:
    return transformers.DeepseekVLHybridConfig(
        text_config=LLAMA,
        vision_config=IMAGE | {"image_size": 64, "patch_size": 16},
        high_res_vision_config=TOWER
        | {"image_size": 64, "output_channels": 16, "global_attn_indexes": [1], "window_size": 2},
        image_token_id=490,
    )


def janus() -> transformers.PreTrainedConfig:
    tower = TOWER | {"projection_dim": 64, "mlp_ratio": 1.5, "patch_size": 14, "image_size": 56}
    return transformers.JanusConfig(text_config=LLAMA, vision_config=tower, image_token_id=490)


def qwen2_audio() -> transformers.PreTrainedConfig:
    return transformers.Qwen2AudioConfig(
        text_config=TEXT | {"model_type": "qwen2", "num_key_value_heads": 2},
        audio_config=AUDIO | {"num_mel_bins": 80, "max_source_positions": 100},
        audio_token_index=490,
    )


def granite_speech() -> transformers.PreTrainedConfig:
    encoder = {"hidden_dim": 64, "num_layers": 2, "num_heads": 4, "dim_head": 16, "output_dim": 42}
    projector = TOWER | {"model_type": "blip_2_qformer", "encoder_hidden_size": 64}
    return transformers.GraniteSpeechConfig(
        text_config=TEXT | {"model_type": "granite"},
        encoder_config=encoder,
        projector_config=projector | {"num_hidden_layers": 1, "intermediate_size": 96},
        audio_token_index=490,
        has_lora_adapter=False,
    )


CONFIGS = {
    "DeepSeek-VL, 56 pixels in patches of 14": (deepseek_vl(56), 4 * 4),
    "DeepSeek-VL, 84 pixels in patches of 14": (deepseek_vl(84), 6 * 6),
    "DeepSeek-VL, two towers": (deepseek_vl_hybrid(), 4 * 4),
    "Janus, 56 pixels in patches of 14": (janus(), 4 * 4),
    "Qwen2-Audio, 200 frames of spectrogram, halved twice": (qwen2_audio(), 50),
    "Granite Speech, 67 windows of 15 frames, 3 each": (granite_speech(), 67 * 3),
}


@pytest.mark.parametrize(("config", "placeholders"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.slow
def test_an_image_or_audio_runs_as_in_a_real_forward(
    config: transformers.PreTrainedConfig, placeholders: int
) -> None:
    report = llmsim.trace(config, batch=2, context=64, dtype="float32")
    assert any(note.startswith(f"{placeholders} of the") for note in report.trace.notes)
    real = real_and_meta_models(config)
    seen = real.prefill(Workload("prefill", 2, 64))
    assert not differences(real.model, seen, report.modules)
