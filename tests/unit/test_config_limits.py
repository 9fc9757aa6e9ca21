"""An invalid config is rejected quickly, with one line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
MIXTRAL = {"model_type": "mixtral", "num_hidden_layers": 2}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a billion layers": (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
    "a billion layers of a stage": ({"model_type": "swin", "depths": [2, 10**9]}, "depths"),
    "a billion experts": (MIXTRAL | {"num_local_experts": 10**9}, "num_local_experts"),
    "no layers": (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers 0"),
    "a negative size": (LLAMA | {"hidden_size": -64}, "hidden_size -64"),
    "no vocabulary": (LLAMA | {"vocab_size": 0}, "vocab_size 0"),
    "no image": ({"model_type": "vit", "image_size": 0}, "image_size 0"),
    "heads that do not divide": (LLAMA | {"num_attention_heads": 7}, "heads"),
    "key heads that do not divide": (LLAMA | {"num_key_value_heads": 3}, "heads"),
    "more choices than experts": (MIXTRAL | {"num_experts_per_tok": 99}, "out of range"),
    "a number that is a word": (LLAMA | {"hidden_size": "big"}, "hidden_size"),
    "no type": ({"hidden_size": 64}, "without model_type"),
    "an unknown type": ({"model_type": "nosuch"}, "'nosuch'"),
    "a part of a model": ({"model_type": "t5_gemma_module"}, "part of a larger model"),
    "a half of a model": ({"model_type": "idefics2_perceiver"}, "only the model around it makes"),
    "a package that is missing": ({"model_type": "dinat"}, "natten"),
}


@pytest.mark.parametrize(("keys", "said"), BAD.values(), ids=BAD)
def test_a_bad_config_is_one_line_that_names_what_is_wrong(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(keys))
    started = time.perf_counter()
    with pytest.raises(llmsim.LlmsimError) as caught:
        llmsim.trace(str(tmp_path), context=8)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 10  # two seconds on a machine that does nothing else


def test_a_config_object_is_held_to_the_same_sizes() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=2)
    config.num_hidden_layers = 10**9
    with pytest.raises(llmsim.LlmsimError, match="num_hidden_layers"):
        llmsim.trace(config)


def test_the_class_of_a_config_is_no_config() -> None:
    with pytest.raises(llmsim.LlmsimError, match="PretrainedConfig"):
        llmsim.trace(transformers.LlamaConfig)
