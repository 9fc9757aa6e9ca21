"""The longest context that a model reads is that of its real forward."""

import pytest
import torch
import transformers

import llmsim_magic as llmsim

SMALL = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
MODELS: dict[str, tuple[type[transformers.PreTrainedModel], transformers.PreTrainedConfig]] = {
    "sinusoids in a plain tensor": (
        transformers.CTRLLMHeadModel,
        transformers.CTRLConfig(**SMALL, dff=32),
    ),
    "rotary table in a buffer": (
        transformers.GPTJForCausalLM,
        transformers.GPTJConfig(**SMALL, rotary_dim=4),
    ),
    "biases computed in the forward": (
        transformers.MptForCausalLM,
        transformers.MptConfig(vocab_size=100, d_model=32, n_layers=2, n_heads=4, max_seq_len=24),
    ),
}


@pytest.mark.parametrize(("model_class", "config"), MODELS.values(), ids=MODELS)
def test_a_context_that_is_too_long_is_one_line_with_the_longest_that_runs(
    model_class: type[transformers.PreTrainedModel], config: transformers.PreTrainedConfig
) -> None:
    model = model_class(config).eval()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 24, dtype=torch.long))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(llmsim.LlmsimError, match=r"so at most 24 in prefill$"):
        llmsim.trace(config, context=100)
    with pytest.raises(llmsim.LlmsimError, match=r"so at most 23 in decode$"):
        llmsim.trace(config, context=24, phase="decode")
    assert llmsim.trace(config, context=24).summary.loc["context", "value"] == 24
    assert llmsim.trace(config).summary.loc["context", "value"] == 24


def test_size_says_the_longest_context() -> None:
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
    )
    with pytest.raises(llmsim.LlmsimError, match=r"has 24 entries, so at most 24 in prefill$"):
        llmsim.size(config, context=100, hardware=["H100"])
