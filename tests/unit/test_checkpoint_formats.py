"""Sizes of packed matrices, by the configs of modelopt, torchao, quark, hqq, aqlm and others."""

from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.weights import matrices, packing_of, weights
from llmsim_magic.analyses.quantization.storage_layouts import packing_from_config
from llmsim_magic.records.errors import InvalidValue
from tests.helpers import small_models

OUT, IN = 256, 512
N = OUT * IN


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": data}}}


def quark(**weight: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": {"weight": weight}}


def modelopt(algorithm: str, **keys: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, **keys}


CASES: list[tuple[dict[str, Any], float]] = [
    (modelopt("FP8"), N + 4),
    (modelopt("FP8_PER_CHANNEL_PER_TOKEN"), N + 4 * OUT),
    (modelopt("FP8_PB_WO"), N + 4 * 2 * 4),
    (modelopt("MXFP8"), N + N / 32),
    (modelopt("NVFP4", group_size=16), N / 2 + N / 16 + 4),
    (modelopt("NVFP4_AWQ", group_size=16), N / 2 + N / 16 + 4 + 2 * IN),
    (modelopt("W4A16_AWQ", group_size=128), N / 2 + N / 128 * 2 + 2 * IN),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, N + 4),
    (torchao("Int4WeightOnlyConfig", group_size=64), N / 2 + N / 64 * 4),
    (torchao("Int8WeightOnlyConfig"), N + 2 * OUT),
    (torchao("Float8WeightOnlyConfig"), N + 4 * OUT),
    (torchao("Float8DynamicActivationFloat8WeightConfig"), N + 4),
    (torchao("Float8DynamicActivationFloat8WeightConfig",
             granularity=[{"_type": "PerRow", "_data": {}}] * 2), N + 4 * OUT),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only",
      "quant_type_kwargs": {"group_size": 32}}, N / 2 + N / 32 * 4),
    (quark(dtype="fp8_e4m3", qscheme="per_tensor", symmetric=True), N + 4),
    (quark(dtype="fp4", qscheme="per_group", group_size=32, scale_format="e8m0"), N / 2 + N / 32),
    (quark(dtype="uint4", qscheme="per_group", group_size=128, symmetric=False),
     N / 2 + N / 128 * 2.5),
    ({"quant_method": "hqq",
      "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
     N / 2 + N / 64 * 4),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params":
      {"nbits": 3, "group_size": 64}}}, -(-N * 3.2 // 8) + N / 64 * 4),
    ({"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1,
      "nbits_per_codebook": 16}, N / 8 * 2 + 2**16 * 8 * 2 + 2 * OUT),
    ({"quant_method": "aqlm", "in_group_size": 8, "num_codebooks": 2, "nbits_per_codebook": 8},
     N / 8 * 2 + 2 * 2**8 * 8 * 2 + 2 * OUT),
    ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True},
     N / 2 + N / 128 * 2.5),
    ({"quant_method": "exl3", "bits": 3.0, "head_bits": 6}, N * 3 / 8 + 2 * (IN + OUT)),
    ({"quant_method": "mlx", "bits": 4, "group_size": 64}, N / 2 + N / 64 * 4),
    ({"bits": 8, "group_size": 32}, N + N / 32 * 4),
    ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, N / 2 + N / 32),
]  # fmt: skip


@pytest.mark.parametrize(("config", "nbytes"), CASES)
def test_a_matrix_has_the_size_that_its_library_gives_it(
    config: dict[str, Any], nbytes: float
) -> None:
    packing = packing_from_config(config, "model")
    assert packing is not None
    assert sum(packing.parts((OUT, IN))) == nbytes


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (modelopt("W3A3"), "W3A3"),
        (modelopt("MIXED_PRECISION"), "names no layers"),
        (torchao("FqnToConfig"), "fqnto"),
        (quark(dtype="int3", qscheme="per_group"), "int3"),
        ({"quant_method": "hqq", "quant_config": {"self_attn.q_proj": {}}}, "by layer"),
        ({"quant_method": "auto-round", "data_type": "mx_fp"}, "mx_fp"),
        ({"quant_method": "exl3"}, "bits"),
        ({"quant_method": "exl3", "bits": "many"}, "many"),
        ({"bits": 4, "group_size": 64, "mode": "q"}, "mode"),
    ],
)
def test_what_a_config_leaves_open_is_refused_in_one_line(
    config: dict[str, Any], names: str
) -> None:
    with pytest.raises(InvalidValue, match=names) as said:
        packing_from_config(config, "model")
    assert "\n" not in str(said.value)
    assert str(said.value).endswith("choose a weight_dtype")


def packed(quantisation: dict[str, Any], key: str = "quantization_config") -> dict[str, float]:
    """Bits of the codes of each packed parameter of a small model."""
    config = small_models.llama()
    setattr(config, key, quantisation)
    trace = llmsim.trace(config, context=8).trace
    packing = packing_of(trace)
    assert packing is not None
    assert packing.description in weights(trace).assumption
    return {name: of.packing.code_bits for name, of in matrices(trace, packing).items()}


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_mlx_packs_embeddings_and_head_and_names_layers(key: str) -> None:
    layers = {
        "model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 32},
        "model.layers.0.mlp.down_proj": False,
        "lm_head": {"bits": 6, "group_size": 32},
    }
    bits = packed({"bits": 4, "group_size": 32, **layers}, key)
    assert bits["model.embed_tokens.weight"] == 4
    assert bits["model.layers.0.mlp.up_proj.weight"] == 8
    assert bits["model.layers.1.mlp.up_proj.weight"] == 4
    assert "model.layers.0.mlp.down_proj.weight" not in bits
    assert bits["lm_head.weight"] == 6


def test_exl3_has_bits_for_the_head() -> None:
    bits = packed({"quant_method": "exl3", "bits": 3.5, "head_bits": 6})
    outer = {name: of for name, of in bits.items() if ".layers." not in name}
    assert set(outer.values()) <= {6}
    assert set(bits.values()) - {6} == {3.5}
    assert "model.embed_tokens.weight" not in bits


def test_auto_round_has_layers_of_their_own_and_blocks_that_it_quantised() -> None:
    layers = {
        "model.layers.0.mlp.up_proj": {"bits": 8},
        "model.layers.0.mlp.down_proj": {"bits": 16},
    }
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": layers}
    bits = packed(config | {"block_name_to_quantize": "model.layers.0"})
    assert bits["model.layers.0.mlp.up_proj.weight"] == 8
    assert bits["model.layers.0.mlp.gate_proj.weight"] == 4
    assert "model.layers.0.mlp.down_proj.weight" not in bits
    assert all(".layers.0." in name for name in bits)


def test_gptq_has_layers_of_their_own() -> None:
    dynamic = {"-:.*down_proj": {}, r"+:.*\.0\..*up_proj": {"bits": 8}}
    bits = packed({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": dynamic})
    assert bits["model.layers.0.mlp.up_proj.weight"] == 8
    assert bits["model.layers.1.mlp.up_proj.weight"] == 4
    assert not any("down_proj" in name for name in bits)


def test_mixed_precision_of_modelopt_names_every_layer() -> None:
    layers = {
        "model.layers.0.mlp.up_proj": {"quant_algo": "FP8"},
        "model.layers.1.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
    }
    assert packed(modelopt("MIXED_PRECISION", quantized_layers=layers)) == {
        "model.layers.0.mlp.up_proj.weight": 8,
        "model.layers.1.mlp.up_proj.weight": 4,
    }
