"""The names in a checkpoint's `quantization_config` reach the modules that they mean."""

from typing import Any

import pytest
import torch
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.weights import matrices, packing_of
from llmsim_magic.capture.checkpoint.match_names import match_parameters
from tests.helpers import small_models

AWQ = {"bits": 4, "group_size": 16, "quant_method": "awq"}
NO_MATCH = "quantization_config names no module of this model"


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def built(config: Any) -> torch.nn.Module:
    class_name = config.architectures[0]
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, class_name)._from_config(config)
    return model


def qwen2_5_vl() -> torch.nn.Module:
    """A small vision-language model, whose checkpoints say `visual` and `model.layers`."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
    }
    return built(
        transformers.Qwen2_5_VLConfig(
            text_config=TEXT,
            vision_config=vision,
            architectures=["Qwen2_5_VLForConditionalGeneration"],
        )
    )


def gemma3() -> torch.nn.Module:
    """A small model whose checkpoints say `vision_tower` and `language_model.model`."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "image_size": 56}
    return built(
        transformers.Gemma3Config(
            text_config=TEXT | {"head_dim": 16},
            vision_config={**vision, "num_attention_heads": 2},
            architectures=["Gemma3ForConditionalGeneration"],
            tie_word_embeddings=False,
        )
    )


def meant(model: torch.nn.Module, name: str) -> set[str]:
    names, _ = match_parameters(model, AWQ | {"modules_to_not_convert": [name]})
    return set(names.get(name, ()))


def under(model: torch.nn.Module, *prefixes: str) -> set[str]:
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and parameter.dim() > 1
    }


@pytest.mark.parametrize("name", ["visual", "model.visual", "re:visual.*", "visual*", "*visual*"])
def test_a_tower_has_the_name_of_the_checkpoint_or_of_the_class(name: str) -> None:
    model = qwen2_5_vl()
    assert meant(model, name) == under(model, "model.visual.")


@pytest.mark.parametrize(
    "name", ["model.layers.1", "model.language_model.layers.1", "re:.*layers\\.1\\.(self_attn|mlp)"]
)
def test_a_layer_has_the_name_of_the_checkpoint_or_of_the_class(name: str) -> None:
    model = qwen2_5_vl()
    assert meant(model, name) == under(model, "model.language_model.layers.1.")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("language_model.lm_head", "lm_head."),
        ("lm_head", "lm_head."),
        ("re:.*lm_head", "lm_head."),
        ("vision_tower", "model.vision_tower."),
        ("re:vision_tower.*", "model.vision_tower."),
        ("vision_tower.vision_model", "model.vision_tower."),
        ("language_model.model.layers.0", "model.language_model.layers.0."),
        ("model.language_model.layers.0", "model.language_model.layers.0."),
        ("re:language_model.model.layers.0.*", "model.language_model.layers.0."),
    ],
)
def test_prefixes_of_older_releases_are_mapped(name: str, prefix: str) -> None:
    model = gemma3()
    expected = under(model, prefix)
    assert expected
    assert meant(model, name) == expected


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("model.layers.*.self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("*self_attn*", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("down_proj", ("down_proj",)),
        ("down", ()),
        ("re:.*mlp.*", ("gate_proj", "up_proj", "down_proj")),
        ("re:[", ()),
        ("model.layers.0", None),
    ],
)
def test_a_name_is_a_part_of_a_path_a_glob_or_a_regular_expression(
    name: str, suffixes: tuple[str, ...] | None
) -> None:
    model = small_models.build("llama")
    if suffixes is None:
        expected = under(model, "model.layers.0.")
    else:
        matrices = under(model, "model.layers.")
        ends = tuple(f"{suffix}.weight" for suffix in suffixes)
        expected = {each for each in matrices if each.endswith(ends)}
    assert meant(model, name) == expected


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("model.layers.0.block_sparse_moe.experts.3.w1", ["gate_up_proj"]),
        ("re:model.layers.0.block_sparse_moe.experts.*", ["gate_up_proj", "down_proj"]),
        ("model.layers.0.mlp.experts", ["gate_up_proj", "down_proj"]),
    ],
)
def test_experts_that_are_stored_one_by_one_are_those_that_are_stacked(
    name: str, kept: list[str]
) -> None:
    model = small_models.build("mixtral")
    assert meant(model, name) == {f"model.layers.0.mlp.experts.{each}" for each in kept}


def test_gptq_marks_what_is_left_out_by_a_sign() -> None:
    model = small_models.build("llama")
    dynamic = {"-:.*down_proj": {}, r"+:.*\.0\..*up_proj": {"bits": 8}}
    names, notes = match_parameters(model, {"quant_method": "gptq", "dynamic": dynamic})
    assert notes == []
    assert names[r"+:.*\.0\..*up_proj"] == ("model.layers.0.mlp.up_proj.weight",)
    assert all(each.endswith("down_proj.weight") for each in names["-:.*down_proj"])


def test_a_name_that_matches_nothing_is_said_once() -> None:
    config = small_models.llama()
    names = ["vision_tower", "lm_head", "nowhere.at_all"]
    config.quantization_config = AWQ | {"modules_to_not_convert": names}
    notes = [n for n in llmsim.trace(config, context=8).trace.notes if NO_MATCH in n]
    assert notes == [f"{NO_MATCH}: 'vision_tower', 'nowhere.at_all'"]


@pytest.mark.slow
def test_gemma_3_27b_w4a16_keeps_its_vision_tower() -> None:
    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "strategy": "group",
                    "group_size": 128,
                    "symmetric": True,
                },
            }
        },
        "ignore": ["re:vision_tower.*", "re:multi_modal_projector.*", "language_model.lm_head"],
    }
    gemma = transformers.Gemma3Config(
        text_config={
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "vocab_size": 262208,
        },
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        architectures=["Gemma3ForConditionalGeneration"],
        dtype="bfloat16",
        quantization_config=config,
    )
    report = llmsim.trace(gemma, context=16, hardware="H100")
    weights = report.memory.loc[["weights"], "bytes"]  # under each runtime
    assert weights.tolist() == pytest.approx([16.87e9] * 2, rel=1e-3)


BNB = {"quant_method": "bitsandbytes", "load_in_8bit": True}
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
CT = {"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUP}}


def llava(quantisation: dict[str, Any]) -> Any:
    """A small model with a projector outside of all repeated layers."""
    text = small_models.llama().to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlavaConfig(
        text_config=text | {"tie_word_embeddings": False},
        vision_config={
            **vision,
            "model_type": "clip_vision_model",
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=1,
        architectures=["LlavaForConditionalGeneration"],
        dtype="bfloat16",
        tie_word_embeddings=False,
    )
    config.quantization_config = quantisation
    return config


def packed(quantisation: dict[str, Any]) -> set[str]:
    trace = llmsim.trace(llava(quantisation), context=16).trace
    packing = packing_of(trace)
    assert packing is not None
    return set(matrices(trace, packing))


def every_linear(*without: str) -> set[str]:
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(llava({}))
    return {
        f"{path}.weight"
        for path, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and not any(each in path for each in without)
    }


@pytest.mark.parametrize(
    ("quantisation", "key", "kept"),
    [
        (BNB, "llm_int8_skip_modules", ("lm_head",)),
        ({"load_in_4bit": True}, "llm_int8_skip_modules", ("lm_head",)),
        ({"quant_method": "fp8"}, "modules_to_not_convert", ("lm_head",)),
        ({"quant_method": "fbgemm_fp8"}, "modules_to_not_convert", ("lm_head",)),
        (CT, "ignore", ()),
    ],
)
def test_every_linear_layer_that_is_not_excluded_is_packed(
    quantisation: dict[str, Any], key: str, kept: tuple[str, ...]
) -> None:
    """Without a list transformers keeps the head; compressed-tensors has no such default."""
    assert packed(quantisation) == every_linear(*kept)
    assert packed(quantisation | {key: None}) == every_linear(*kept)
    names = ["multi_modal_projector"]
    assert packed(quantisation | {key: names}) == every_linear(*names)
    names = ["lm_head", "vision_tower"]
    assert packed(quantisation | {key: names}) == every_linear(*names)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_libraries_that_quantise_blocks_pack_nothing_outside(method: str) -> None:
    found = packed({"quant_method": method, "bits": 4, "group_size": 32})
    assert found == every_linear("multi_modal_projector", "lm_head")
