"""Architectures of transformers, one or more for each reason why `meta` alone would not do."""

import pytest

CAUSES = {
    "attention of every kind": "bloom cohere2 deepseek_v2 gemma3_text glm4 gpt2 llama mistral",
    "experts in a grouped matmul": "deepseek_v3 gpt_oss granitemoe mixtral qwen3_moe",
    "experts in a loop": "jetmoe",
    "state instead of keys and values": "mamba mamba2 xlnet",
    "state beside keys and values": "lfm2 qwen3_next zamba2",
    "an encoder and a decoder": "bart led m2m_100 pegasus t5 whisper",
    "an encoder alone": "albert bert deberta-v2 electra funnel modernbert",
    "placeholders that the model inside the head embeds": "deepseek_vl fuyu",
    "placeholders for images": "internvl lfm2_vl llava llava_next paligemma qwen2_5_vl",
    "images before the tokens": "git",
    "images of the size of their prompt": "seggpt",
    "patches merged before they are read": "inkling2_vision",
    "patches of two frames": "muse_glimmer_vision",
    "patches in a batch of one": "paddleocr_vl_vision",
    "two encoders": "clip siglip2",
    "convolutions": "convnext resnet segformer",
    "sizes of a grid of patches": "dpt swin vit",
    "objects in an image": "yolos",
    "values of buffers": "encodec",
    "a token of every codebook": "dia",
    "audio": "audio-spectrogram-transformer hubert speech_to_text wav2vec2 speech-encoder-decoder",
    "audio in stacked frames": "fun_asr_nano_encoder granite_speech5_encoder",
    "placeholders for audio": "qwen2_audio",
    "audio in one sequence": "qwen2_5_omni_audio_encoder",
    "videos": "timesformer videomae xclip_vision_model",
    "series": "autoformer patchtst",
    "boxes and regions": "bros layoutlm lxmert",
    "states of an encoder that is not there": "blip_2_qformer dia_decoder",
    "embeddings instead of tokens": "qwen3_omni_moe_talker_code_predictor",
    "the language of each sample": "xmod",
    "tensors under vmap": "nemotron_asr_streaming_encoder",
}
SLOW = ("seggpt", "muse_glimmer_vision", "paddleocr_vl_vision", "encodec")
# The first of each cause is quick.
TYPES = [
    pytest.param(
        model_type,
        id=f"{model_type} ({cause})",
        marks=[pytest.mark.slow] if place or model_type in SLOW else [],
    )
    for cause, types in CAUSES.items()
    for place, model_type in enumerate(types.split())
]
