"""Small models of many architectures, and a real forward pass of each."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from tests.helpers.cache_names import cache_keyword, cache_of

BATCH = 2
CONTEXT = 7
WINDOW = 4  # below CONTEXT, so that sliding attention forgets
ENCODERS = ("bert", "distilbert", "vit")
ENCODER_DECODERS = ("t5", "whisper")

VOCABULARY = 100
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def qwen3() -> PretrainedConfig:
    """Heads wider than hidden / heads, fewer key heads than query heads, a tied head."""
    return transformers.Qwen3Config(
        **_DECODER,
        **_SPECIAL,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    )


def llama() -> PretrainedConfig:
    """Fewer key heads than query heads, and a head of its own."""
    return transformers.LlamaConfig(
        **_DECODER, **_SPECIAL, num_key_value_heads=2, architectures=["LlamaForCausalLM"]
    )


def gpt2() -> PretrainedConfig:
    """Learned positions, fused query-key-value as `Conv1D`, a tied head."""
    return transformers.GPT2Config(
        **_SPECIAL,
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=64,
        n_layer=2,
        n_head=4,
        architectures=["GPT2LMHeadModel"],
    )


def bert() -> PretrainedConfig:
    """An encoder whose head ties both its weight and its bias."""
    return transformers.BertConfig(**_DECODER, pad_token_id=0, architectures=["BertForMaskedLM"])


def distilbert() -> PretrainedConfig:
    """An encoder without token types or a pooler."""
    return transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=64,
        hidden_dim=96,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=32,
        architectures=["DistilBertForMaskedLM"],
    )


def t5() -> PretrainedConfig:
    """Encoder and decoder of different depth, one embedding for both, relative positions."""
    return transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )


def whisper() -> PretrainedConfig:
    """An encoder of 40 frames that halves them, and a text decoder."""
    return transformers.WhisperConfig(
        **_SPECIAL,
        vocab_size=VOCABULARY,
        d_model=64,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        decoder_start_token_id=1,
        architectures=["WhisperForConditionalGeneration"],
    )


def mixtral() -> PretrainedConfig:
    """Two of four experts for each token."""
    return transformers.MixtralConfig(
        **_DECODER,
        **_SPECIAL,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        architectures=["MixtralForCausalLM"],
    )


def mistral() -> PretrainedConfig:
    """A window smaller than the context in every layer."""
    return transformers.MistralConfig(
        **_DECODER,
        **_SPECIAL,
        num_key_value_heads=2,
        sliding_window=WINDOW,
        architectures=["MistralForCausalLM"],
    )


def gemma2() -> PretrainedConfig:
    """Layers with and without a window by turns."""
    return transformers.Gemma2Config(
        **{**_DECODER, "num_hidden_layers": 3},
        **_SPECIAL,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=WINDOW,
        architectures=["Gemma2ForCausalLM"],
    )


def gpt_neox() -> PretrainedConfig:
    """Attention and feed-forward side by side, rotation of a part of each head."""
    return transformers.GPTNeoXConfig(**_DECODER, **_SPECIAL, architectures=["GPTNeoXForCausalLM"])


def opt() -> PretrainedConfig:
    """Embeddings narrower than the layers, learned positions with an offset."""
    return transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        word_embed_proj_dim=32,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        architectures=["OPTForCausalLM"],
    )


def vit() -> PretrainedConfig:
    """Sixteen patches of an image."""
    return transformers.ViTConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_labels=5,
        architectures=["ViTForImageClassification"],
    )


def mamba() -> PretrainedConfig:
    """A state instead of keys and values."""
    return transformers.MambaConfig(
        **_SPECIAL,
        vocab_size=VOCABULARY,
        hidden_size=64,
        state_size=8,
        num_hidden_layers=2,
        architectures=["MambaForCausalLM"],
    )


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3": qwen3,
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "distilbert": distilbert,
    "t5": t5,
    "whisper": whisper,
    "mixtral": mixtral,
    "mistral": mistral,
    "gemma2": gemma2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "vit": vit,
    "mamba": mamba,
}
WORKLOADS = [
    (name, phase)
    for name in CONFIGS
    for phase in ("prefill", "decode")
    if phase == "prefill" or name not in ENCODERS
]


def build(name: str, device: str = "cpu") -> Any:
    """The model with random weights, or without any on `meta`."""
    config = CONFIGS[name]()
    with torch.device(device):
        return getattr(transformers, config.architectures[0])(config).eval()


def tokens(model: Any, count: int) -> torch.Tensor:
    """Token ids of `[BATCH, count]`, none of them special."""
    ids = torch.arange(BATCH * count, device=model.device) % 50 + 3
    return ids.reshape(BATCH, count)


def prefill_inputs(name: str, model: Any) -> dict[str, Any]:
    """What the model, or its encoder, reads at once."""
    config = model.config
    if name == "vit":
        shape = (BATCH, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, device=model.device)}
    if name == "whisper":
        shape = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(shape, device=model.device)}
    return {"input_ids": tokens(model, CONTEXT)}


def inputs(name: str, phase: str, model: Any) -> dict[str, Any]:
    """The keywords of one forward pass; for decode, after a real pass that fills the cache."""
    read = prefill_inputs(name, model)
    if name in ENCODERS:
        return read
    if phase == "prefill":
        first = {"decoder_input_ids": tokens(model, 1)} if name in ENCODER_DECODERS else {}
        return {**read, **first, "use_cache": True}
    if name in ENCODER_DECODERS:
        with torch.no_grad():
            primed = model(**read, decoder_input_ids=tokens(model, CONTEXT), use_cache=True)
        return {
            "encoder_outputs": BaseModelOutput(primed.encoder_last_hidden_state),
            cache_keyword(model): cache_of(primed),
            "decoder_input_ids": tokens(model, 1),
            "use_cache": True,
        }
    with torch.no_grad():
        primed = model(**read, use_cache=True)
    return {
        cache_keyword(model): cache_of(primed),
        "input_ids": tokens(model, 1),
        "use_cache": True,
    }
