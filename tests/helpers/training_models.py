"""Small models for training steps, and invented devices that some of their steps fit."""

from dataclasses import replace

import transformers
from transformers import PretrainedConfig

from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.hardware.accelerator import Accelerator


def trained_decoder() -> PretrainedConfig:
    """A decoder whose activations outweigh its parameters, of 256 positions."""
    return transformers.Qwen3Config(
        vocab_size=4096, hidden_size=256, intermediate_size=640, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


def device_of(usable: int) -> Accelerator:
    """An L4 with a memory of which transformers can use about so many bytes."""
    whole = accelerators.find("L4")
    runtime = runtimes.on("transformers", whole)
    share = runtime.usable_bytes(10**12) / 10**12
    return replace(whole, name="small", memory_bytes=int(usable / share))
