"""The structural difference of two models: which modules correspond, and what differs in them."""

import time
from dataclasses import replace
from typing import Any

import pytest
import transformers

from llmsim_magic.analyses.structure.module_tree import ModuleNode
from llmsim_magic.analyses.structure.structural_diff import ModuleDifference, structural_diff
from llmsim_magic.records.trace.trace import Trace
from tests.helpers import small_models
from tests.helpers.difference_rows import (
    difference_rows,
    trace_of,
    unlike,
)


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_a_model_is_the_same_as_itself(name: str) -> None:
    trace = trace_of(small_models.CONFIGS[name]())
    rows = structural_diff(trace, replace(trace))
    assert {row.status for row in rows} == {"same"}
    assert all(row.first and row.second for row in rows)


@pytest.mark.parametrize("names", [("gpt2", "qwen3"), ("bert", "t5"), ("mamba", "mixtral")])
def test_each_module_is_in_one_row_and_parameters_add_up(names: tuple[str, str]) -> None:
    traces = [trace_of(small_models.CONFIGS[name]()) for name in names]
    rows = structural_diff(*traces)
    sides: tuple[list[ModuleNode], ...] = (
        [row.first for row in rows if row.first],
        [row.second for row in rows if row.second],
    )
    for trace, nodes in zip(traces, sides, strict=True):
        assert len({node.place.path for node in nodes}) == len(nodes)
        assert sum(node.place.layers for node in nodes) == len(trace.modules)
        params = sum(p.numel for p in trace.parameters if not p.is_buffer and p.tied_to is None)
        assert sum(node.params * node.place.layers for node in nodes) == params
        assert nodes[0].params_total == params


def test_two_sizes_of_one_model_differ_in_their_shapes() -> None:
    rows = difference_rows(trace_of("Qwen/Qwen3-0.6B"), trace_of("Qwen/Qwen3-1.7B"))
    assert all(first == second for _, first, second, _ in rows)
    layer = "model.layers.0–27"
    assert {first: change for status, first, _, change in rows if status == "changed"} == {
        "model.embed_tokens": "weight [151936, 1024] → [151936, 2048]",
        layer: "hidden_size 1024 → 2048",
        f"{layer}.input_layernorm": "weight [1024] → [2048]",
        f"{layer}.self_attn.q_proj": "weight [2048, 1024] → [2048, 2048]",
        f"{layer}.self_attn.k_proj": "weight [1024, 1024] → [1024, 2048]",
        f"{layer}.self_attn.v_proj": "weight [1024, 1024] → [1024, 2048]",
        f"{layer}.self_attn.o_proj": "weight [1024, 2048] → [2048, 2048]",
        f"{layer}.post_attention_layernorm": "weight [1024] → [2048]",
        f"{layer}.mlp": "hidden_size 1024 → 2048; intermediate_size 3072 → 6144",
        f"{layer}.mlp.gate_proj": "weight [3072, 1024] → [6144, 2048]",
        f"{layer}.mlp.up_proj": "weight [3072, 1024] → [6144, 2048]",
        f"{layer}.mlp.down_proj": "weight [1024, 3072] → [2048, 6144]",
        "model.norm": "weight [1024] → [2048]",
        "lm_head": "weight [151936, 1024] → [151936, 2048]",
    }
    same = {first for status, first, _, _ in rows if status == "same"}
    assert {f"{layer}.self_attn.q_norm", f"{layer}.mlp.act_fn", "model.layers", ""} <= same


def test_stacks_of_different_length_are_one_block() -> None:
    rows = difference_rows(trace_of("meta-llama/Llama-3.1-8B"), trace_of("Qwen/Qwen3-8B"))
    first, second = "model.layers.0–31", "model.layers.0–35"
    assert [row for row in rows if row[0] in ("added", "removed")] == [
        ("added", None, f"{second}.self_attn.q_norm", ""),
        ("added", None, f"{second}.self_attn.k_norm", ""),
    ]
    change = {row[1]: row[3] for row in rows}
    partner = {row[1]: row[2] for row in rows}
    assert partner[first] == second
    assert change[first] == "type LlamaDecoderLayer → Qwen3DecoderLayer; layers ×32 → ×36"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):  # both are 4096 wide, with 8 key heads
        assert partner[f"{first}.self_attn.{name}"] == f"{second}.self_attn.{name}"
        assert change[f"{first}.self_attn.{name}"] == ""
    assert change[f"{first}.mlp.up_proj"] == "weight [14336, 4096] → [12288, 4096]"
    norm = "type LlamaRMSNorm → Qwen3RMSNorm; variance_epsilon 1e-05 → 1e-06"
    assert change["model.norm"] == change[f"{first}.input_layernorm"] == norm
    assert change["lm_head"] == "weight [128256, 4096] → [151936, 4096]"


def test_stacks_with_other_names_correspond() -> None:
    rows = difference_rows(trace_of("gpt2"), trace_of("Qwen/Qwen3-0.6B"))
    partner = {row[1]: row[2] for row in rows if row[1] is not None}
    change = {row[1]: row[3] for row in rows}
    first, second = "transformer.h.0–11", "model.layers.0–27"
    expected = {
        "transformer": "model",
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": None,
        "transformer.h": "model.layers",
        first: second,
        f"{first}.ln_1": f"{second}.input_layernorm",
        f"{first}.attn": f"{second}.self_attn",
        f"{first}.attn.c_attn": None,
        f"{first}.ln_2": f"{second}.post_attention_layernorm",
        f"{first}.mlp": f"{second}.mlp",
        f"{first}.mlp.act": f"{second}.mlp.act_fn",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    }
    assert {path: partner[path] for path in expected} == expected
    assert change["transformer.h"] == "name h → layers"
    assert change[first] == "type GPT2Block → Qwen3DecoderLayer; layers ×12 → ×28"
    assert change["transformer.wte"] == (
        "name wte → embed_tokens; weight [50257, 768] → [151936, 1024]; "
        "weight dtype float32 → bfloat16"
    )
    assert change["transformer.ln_f"] == (
        "type LayerNorm → Qwen3RMSNorm; name ln_f → norm; weight [768] → [1024]; "
        "weight dtype float32 → bfloat16; bias [768] → none"
    )


def test_experts_take_the_place_of_a_feed_forward_network() -> None:
    rows = difference_rows(trace_of(small_models.llama()), trace_of(small_models.mixtral()))
    layer = "model.layers.0–1"
    assert ("changed", f"{layer}.mlp", f"{layer}.mlp") in [row[:3] for row in rows]
    gone = {row[1] for row in rows if row[0] == "removed"}
    assert gone == {f"{layer}.mlp.{name}_proj" for name in ("gate", "up", "down")}
    new = {row[2] for row in rows if row[0] == "added"}
    assert new == {f"{layer}.mlp.gate", f"{layer}.mlp.experts"}
    same = {row[1] for row in rows if row[0] == "same"}
    assert {f"{layer}.self_attn.{name}_proj" for name in "qkvo"} <= same


def test_kinds_of_layers_by_turns_correspond_kind_by_kind() -> None:
    def model(layers: int, **options: Any) -> Trace:
        config = small_models.gemma2()
        config.num_hidden_layers = layers
        types = ["sliding_attention", "full_attention"]
        if options.get("full_first"):
            types.reverse()
        config.layer_types = [types[index % 2] for index in range(layers)]
        return trace_of(config)

    rows = difference_rows(model(4), model(10))
    assert [row for row in unlike(rows) if row[0] != "changed"] == []
    assert [row for row in rows if row[0] == "changed"] == [
        ("changed", "model.layers.0, 2", "model.layers.0, 2, …, 8", "layers ×2 → ×5"),
        ("changed", "model.layers.1, 3", "model.layers.1, 3, …, 9", "layers ×2 → ×5"),
    ]
    swapped = difference_rows(model(4), model(6, full_first=True))
    assert unlike(swapped) == [
        ("changed", "model.layers.1, 3", "model.layers.0, 2, 4", "layers ×2 → ×3"),
        ("changed", "model.layers.0, 2", "model.layers.1, 3, 5", "layers ×2 → ×3"),
    ]
    of_one_length = unlike(difference_rows(model(4), model(4, full_first=True)))
    assert [row[:3] for row in of_one_length] == [
        ("changed", f"model.layers.{spans}.self_attn", f"model.layers.{spans}.self_attn")
        for spans in ("0, 2", "1, 3")
    ]
    assert "layer_type sliding_attention → full_attention" in of_one_length[0][3]
    more = structural_diff(model(4), model(10))
    (block,) = (row for row in more if row.second and row.second.place.path.endswith("9"))
    assert block.second is not None
    assert block.second.place.layer_indices == (1, 3, 5, 7, 9)


def test_dense_layers_before_those_with_experts_correspond_to_dense_layers() -> None:
    def model(layers: int, first_dense: int) -> Trace:
        config = transformers.DeepseekV3Config(
            vocab_size=100, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
            num_hidden_layers=layers, first_k_dense_replace=first_dense, num_attention_heads=4,
            num_key_value_heads=4, n_routed_experts=8, n_shared_experts=1, n_group=2,
            topk_group=1, num_experts_per_tok=2, q_lora_rank=16, kv_lora_rank=16,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, max_position_embeddings=32,
            pad_token_id=0, architectures=["DeepseekV3ForCausalLM"],
        )  # fmt: skip
        return trace_of(config)

    some = model(5, 2)
    rows = difference_rows(some, model(7, 1))
    assert unlike(rows) == [
        ("changed", "model.layers.0–1", "model.layers.0", "layers ×2 → ×1"),
        ("changed", "model.layers.2–4", "model.layers.1–6", "layers ×3 → ×6"),
    ]
    dense = difference_rows(some, model(3, 3))
    kept = {row[1] for row in dense if row[2] and row[1] and row[1].startswith("model.layers.")}
    assert {path.split(".")[2] for path in kept} == {"0–1"}
    assert {row[1] for row in dense if row[0] == "removed"} == {
        row[1] for row in dense if row[1] and row[1].startswith("model.layers.2–4")
    }


def test_a_model_without_its_head_is_the_same_inside() -> None:
    config = small_models.qwen3
    rows = difference_rows(trace_of(config()), trace_of(config(), base=True))
    assert unlike(rows) == [
        ("removed", "", None, ""),
        ("removed", "lm_head", None, ""),
    ]
    assert ("same", "model", "", "") in rows
    assert ("same", "model.layers.0–1.mlp", "layers.0–1.mlp", "") in rows
    back = difference_rows(trace_of(config(), base=True), trace_of(config()))
    assert unlike(back) == [("added", None, "", ""), ("added", None, "lm_head", "")]


def test_a_tied_weight_that_becomes_its_own_is_a_change() -> None:
    config = small_models.qwen3()
    config.tie_word_embeddings = False
    assert unlike(difference_rows(trace_of(small_models.qwen3()), trace_of(config))) == [
        ("changed", "lm_head", "lm_head", "weight tied to model.embed_tokens.weight → none")
    ]


def test_a_stack_is_not_a_list_inside_one_layer_of_another() -> None:
    """T5's first block differs from the others, and each has a list of its parts."""

    def rows(first: str, second: str) -> dict[str | None, str | None]:
        traces = [trace_of(small_models.CONFIGS[name]()) for name in (first, second)]
        return {row[1]: row[2] for row in difference_rows(*traces)}

    partner = rows("t5", "whisper")
    for stack in ("encoder", "decoder"):
        assert partner[stack] == f"model.{stack}"
        assert partner[f"{stack}.block"] == f"model.{stack}.layers"


@pytest.mark.slow
def test_large_models_are_compared_at_once() -> None:
    traces = [trace_of(f"meta-llama/Llama-3.1-{size}") for size in ("405B", "70B")]
    seconds = []
    for _ in range(3):
        fresh = [replace(trace) for trace in traces]  # without what is memoized
        start = time.perf_counter()
        rows: tuple[ModuleDifference, ...] = structural_diff(*fresh)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2
    assert {row.status for row in rows} == {"same", "changed"}
