"""The memory of a plain call equals that of a real pass, with and without the old cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PretrainedConfig

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.memory import memory
from tests.helpers.allocation_peak import block_peak
from tests.helpers.cache_names import cache_keyword, cache_of

BATCH, CONTEXT, WINDOW = 4, 96, 32
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
SLIDING: dict[str, Any] = {**GROUPED, "sliding_window": WINDOW, "num_hidden_layers": 4}
LATENT: dict[str, Any] = {
    **SIZES,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "topk_group": 1,
}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=512, n_positions=256, n_embd=256, n_layer=3, n_head=4
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=512, hidden_size=256, n_layer=3, n_head=4),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=3, num_attention_heads=4
    ),
    "gemma2": lambda: transformers.Gemma2Config(**SLIDING, head_dim=64),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SLIDING, head_dim=64, layer_types=["sliding_attention"] * 3 + ["full_attention"]
    ),
    "mistral": lambda: transformers.MistralConfig(**SLIDING),
    "mixtral": lambda: transformers.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **GROUPED, head_dim=64, num_experts=8, num_experts_per_tok=4, moe_intermediate_size=128
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **GROUPED,
        head_dim=64,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **LATENT, q_lora_rank=None, n_group=1, num_key_value_heads=4
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **LATENT, q_lora_rank=96, n_group=2, num_key_value_heads=4
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=512, hidden_size=128, state_size=8, num_hidden_layers=3
    ),
}
# Those whose attention is one fused kernel on a CPU too.
FUSED = ("llama", "phi", "gpt2", "gemma3", "mistral", "mixtral", "qwen3_moe")
CASES = [*((name, "eager") for name in CONFIGS), *((name, "sdpa") for name in FUSED)]


def _real(model: Any, phase: str, *, keeps_cache: bool) -> int:
    ids = torch.arange(BATCH * CONTEXT).reshape(BATCH, CONTEXT) % 500 + 3
    keywords = {"input_ids": ids, "use_cache": True}
    if phase == "decode":
        with torch.no_grad():
            cache = cache_of(model(**keywords))
        keywords = {"input_ids": ids[:, :1].clone(), "use_cache": True, cache_keyword(model): cache}
        del cache
    return block_peak(model, keywords, keeps_cache=keeps_cache)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_pass_takes_what_a_real_one_takes(name: str, attention: str, phase: str) -> None:
    """In blocks, for a caller who keeps the old cache and for `generate()`, which does not."""
    config = CONFIGS[name]()
    of = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [of.__name__]
    config._attn_implementation = attention
    model = of(config).eval()
    trace = llmsim.trace(
        config, phase=phase, batch=BATCH, context=CONTEXT, attn=attention, dtype="float32"
    ).trace
    found = memory(trace)
    kept, dropped = (_real(model, phase, keeps_cache=keeps) for keeps in (True, False))
    updated_in_place = found.cache if name == "mamba" and phase == "decode" else 0
    assert found.activations + found.cache - updated_in_place == pytest.approx(kept, rel=5e-3)
    assert found.total - found.weights - found.buffers == pytest.approx(dropped, rel=5e-3)
