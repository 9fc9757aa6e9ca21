"""Config groups of compressed-tensors quantise the modules that their targets select."""

from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.weights import matrices, packing_of, weights
from llmsim_magic.analyses.quantization.storage_layouts import packing_from_config
from llmsim_magic.records.errors import InvalidValue
from tests.helpers import small_models

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def group(weights_of: dict[str, Any] | None, *targets: str) -> dict[str, Any]:
    return {"targets": list(targets), "weights": weights_of}


def config(*groups: dict[str, Any], ignore: tuple[str, ...] = (), **keys: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{number}": each for number, each in enumerate(groups)},
        "ignore": list(ignore),
        **keys,
    }


def traced(quantisation: dict[str, Any], name: str = "llama") -> Any:
    made = small_models.CONFIGS[name]()
    made.quantization_config = quantisation
    return llmsim.trace(made, context=8).trace


def bits(quantisation: dict[str, Any], name: str = "llama") -> dict[str, float]:
    """Bits of the codes of each packed parameter."""
    trace = traced(quantisation, name)
    packing = packing_of(trace)
    assert packing is not None
    return {of: matrix.packing.code_bits for of, matrix in matrices(trace, packing).items()}


def all_linear(*parts: str, of_bits: int) -> dict[str, float]:
    return {
        f"model.layers.{layer}.{'self_attn' if part in ATTENTION else 'mlp'}.{part}.weight": of_bits
        for layer in range(2)
        for part in parts
    }


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("re:.*mlp.*", MLP),
        ("re:.*down_proj", ("down_proj",)),
        (r"re:model\.layers\.\d+\.self_attn\.(q|k)_proj$", ("q_proj", "k_proj")),
        ("up_proj", ("up_proj",)),
    ],
)
def test_a_group_packs_its_targets_alone(target: str, parts: tuple[str, ...]) -> None:
    assert bits(config(group(INT4, target))) == all_linear(*parts, of_bits=4)


def test_every_group_has_its_own_layout() -> None:
    found = bits(config(group(FP8, "re:.*self_attn.*"), group(INT4, "re:.*mlp.*")))
    assert found == all_linear(*ATTENTION, of_bits=8) | all_linear(*MLP, of_bits=4)


@pytest.mark.parametrize("linear_first", [True, False])
def test_a_path_precedes_a_pattern_and_a_pattern_a_class(linear_first: bool) -> None:
    name = "model.layers.1.mlp.up_proj"
    groups = [
        group(INT4, "Linear"),
        group(FP8, "re:.*up_proj"),
        group(INT4 | {"num_bits": 2}, name),
    ]
    found = bits(config(*(groups if linear_first else reversed(groups)), ignore=("lm_head",)))
    others = tuple(part for part in (*ATTENTION, *MLP) if part != "up_proj")
    expected = all_linear(*others, of_bits=4) | all_linear("up_proj", of_bits=8)
    assert found == expected | {f"{name}.weight": 2}


def test_what_is_ignored_is_no_target() -> None:
    found = bits(config(group(INT4, "re:.*mlp.*"), ignore=("re:.*up_proj", "lm_head")))
    assert found == all_linear("gate_proj", "down_proj", of_bits=4)


def test_linear_means_the_head_and_experts_too() -> None:
    assert bits(config(group(INT4, "Linear")))["lm_head.weight"] == 4
    found = bits(config(group(INT4, "Linear"), ignore=("lm_head", "re:.*gate")), "mixtral")
    assert found["model.layers.0.mlp.experts.down_proj"] == 4
    assert "lm_head.weight" not in found


@pytest.mark.parametrize(
    ("target", "packed"),
    [
        ("Embedding", {"model.embed_tokens.weight"}),
        ("LlamaMLP", set()),  # has no weight itself: compressed-tensors does not quantise its parts
    ],
)
def test_a_class_means_the_weights_that_its_modules_hold(target: str, packed: set[str]) -> None:
    assert set(bits(config(group(INT4, target)))) == packed


@pytest.mark.parametrize(
    "quantisation",
    [
        config(format="dense", sparsity_config={"format": "dense", "sparsity_structure": "2:4"}),
        config(group(None, "Linear"), kv_cache_scheme={"num_bits": 8, "type": "float"}),
    ],
)
def test_without_groups_of_weights_they_are_as_they_are(quantisation: dict[str, Any]) -> None:
    trace = traced(quantisation)
    found = weights(trace)
    assert found.packed_parameters == 0
    assert found.nbytes == sum(p.nbytes for p in trace.parameters if not p.is_buffer)
    assert "its quantization_config quantises no weights" in trace.notes


def test_modules_of_a_group_without_weights_are_as_they_are() -> None:
    found = bits(config(group(INT4, "Linear"), group(None, "re:.*mlp.*"), ignore=("lm_head",)))
    assert found == all_linear(*ATTENTION, of_bits=4)


def test_a_sparse_format_is_refused() -> None:
    sparse = config(group(FP8, "Linear"), sparsity_config={"format": "sparse-24-bitmask"})
    with pytest.raises(InvalidValue, match="sparse-24-bitmask"):
        packing_from_config(sparse, "model")
