"""The structural difference of two models: which modules correspond, and what differs in them."""

import copy
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.analyses.structure.module_tree import ModuleNode
from llmsim_magic.analyses.structure.sequence_alignment import align_sequences
from llmsim_magic.analyses.structure.structural_diff import ModuleDifference, structural_diff
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.report_tables import ReportTables
from llmsim_magic.views.tables.differences import change_text, differences_table
from tests.helpers import small_models

Row = tuple[str, str | None, str | None, str]  # status, both paths, change


def _rows(first: Trace, second: Trace) -> list[Row]:
    return [
        (
            row.status,
            row.first.place.path if row.first else None,
            row.second.place.path if row.second else None,
            "; ".join(map(change_text, row.changes)),
        )
        for row in structural_diff(first, second)
    ]


def _trace(model: Any, **options: Any) -> Trace:
    return llmsim.trace(model, context=4, **options).trace


def _live(module: nn.Module, width: int = 8) -> Trace:
    return llmsim.trace(module, inputs=torch.zeros(2, width)).trace


def _live_rows(first: nn.Module, second: nn.Module, width: int = 8) -> list[Row]:
    return _rows(_live(first, width), _live(second, width))


def _unlike(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row[0] != "same"]


class _Chain(nn.Module):
    """Runs its modules one after the other."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            for each in module if isinstance(module, nn.ModuleList) else [module]:
                x = each(x)
        return x


# whole models


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_a_model_is_the_same_as_itself(name: str) -> None:
    trace = _trace(small_models.CONFIGS[name]())
    rows = structural_diff(trace, replace(trace))
    assert {row.status for row in rows} == {"same"}
    assert all(row.first and row.second for row in rows)


@pytest.mark.parametrize("names", [("gpt2", "qwen3"), ("bert", "t5"), ("mamba", "mixtral")])
def test_each_module_is_in_one_row_and_parameters_add_up(names: tuple[str, str]) -> None:
    traces = [_trace(small_models.CONFIGS[name]()) for name in names]
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
    rows = _rows(_trace("Qwen/Qwen3-0.6B"), _trace("Qwen/Qwen3-1.7B"))
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
    rows = _rows(_trace("meta-llama/Llama-3.1-8B"), _trace("Qwen/Qwen3-8B"))
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
    rows = _rows(_trace("gpt2"), _trace("Qwen/Qwen3-0.6B"))
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
    rows = _rows(_trace(small_models.llama()), _trace(small_models.mixtral()))
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
        return _trace(config)

    rows = _rows(model(4), model(10))
    assert [row for row in _unlike(rows) if row[0] != "changed"] == []
    assert [row for row in rows if row[0] == "changed"] == [
        ("changed", "model.layers.0, 2", "model.layers.0, 2, …, 8", "layers ×2 → ×5"),
        ("changed", "model.layers.1, 3", "model.layers.1, 3, …, 9", "layers ×2 → ×5"),
    ]
    swapped = _rows(model(4), model(4, full_first=True))
    assert {row[0] for row in swapped} == {"same"}
    assert ("same", "model.layers.0, 2", "model.layers.1, 3", "") in swapped
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
        return _trace(config)

    some = model(5, 2)
    rows = _rows(some, model(7, 1))
    assert _unlike(rows) == [
        ("changed", "model.layers.0–1", "model.layers.0", "layers ×2 → ×1"),
        ("changed", "model.layers.2–4", "model.layers.1–6", "layers ×3 → ×6"),
    ]
    dense = _rows(some, model(3, 3))
    kept = {row[1] for row in dense if row[2] and row[1] and row[1].startswith("model.layers.")}
    assert {path.split(".")[2] for path in kept} == {"0–1"}
    assert {row[1] for row in dense if row[0] == "removed"} == {
        row[1] for row in dense if row[1] and row[1].startswith("model.layers.2–4")
    }


def test_a_model_without_its_head_is_the_same_inside() -> None:
    config = small_models.qwen3
    rows = _rows(_trace(config()), _trace(config(), base=True))
    assert _unlike(rows) == [
        ("removed", "", None, ""),
        ("removed", "lm_head", None, ""),
    ]
    assert ("same", "model", "", "") in rows
    assert ("same", "model.layers.0–1.mlp", "layers.0–1.mlp", "") in rows
    back = _rows(_trace(config(), base=True), _trace(config()))
    assert _unlike(back) == [("added", None, "", ""), ("added", None, "lm_head", "")]


def test_a_tied_weight_that_becomes_its_own_is_a_change() -> None:
    config = small_models.qwen3()
    config.tie_word_embeddings = False
    assert _unlike(_rows(_trace(small_models.qwen3()), _trace(config))) == [
        ("changed", "lm_head", "lm_head", "weight tied to model.embed_tokens.weight → none")
    ]


# live modules


def test_an_edited_copy_shows_the_edits() -> None:
    first = _Chain(a=nn.Linear(8, 8), act=nn.ReLU(), b=nn.Linear(8, 8))
    second = copy.deepcopy(first)
    second.b = nn.Linear(8, 16, bias=False)
    second.add_module("c", nn.Linear(16, 4))
    assert _unlike(_live_rows(first, second)) == [
        ("changed", "b", "b", "weight [8, 8] → [16, 8]; bias [8] → none"),
        ("added", None, "c", ""),
    ]
    assert _unlike(_live_rows(second, first)) == [
        ("changed", "b", "b", "weight [16, 8] → [8, 8]; bias none → [8]"),
        ("removed", "c", None, ""),
    ]


def test_another_class_at_the_same_path_is_a_change() -> None:
    first = _Chain(a=nn.Linear(8, 8), act=nn.ReLU())
    second = _Chain(a=nn.Linear(8, 8), act=nn.Dropout(0.5))
    assert _unlike(_live_rows(first, second)) == [("changed", "act", "act", "type ReLU → Dropout")]
    third = _Chain(a=nn.Linear(8, 8), act=nn.Dropout(0.25))
    assert _unlike(_live_rows(second, third)) == [("changed", "act", "act", "p 0.5 → 0.25")]


def test_renamed_modules_correspond_in_order() -> None:
    first = _Chain(q_proj=nn.Linear(8, 8), k_proj=nn.Linear(8, 8), out=nn.Linear(8, 8))
    second = _Chain(query=nn.Linear(8, 8), key=nn.Linear(8, 8), out=nn.Linear(8, 8))
    assert _unlike(_live_rows(first, second)) == [
        ("changed", "q_proj", "query", "name q_proj → query"),
        ("changed", "k_proj", "key", "name k_proj → key"),
    ]


def test_a_renamed_module_that_could_be_either_of_two_corresponds_to_neither() -> None:
    first = _Chain(a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    second = _Chain(c=nn.Linear(8, 8))
    assert _unlike(_live_rows(first, second)) == [
        ("removed", "a", None, ""),
        ("removed", "b", None, ""),
        ("added", None, "c", ""),
    ]


def test_a_name_counts_more_than_a_place() -> None:
    first = _Chain(a=nn.Linear(8, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 8))
    second = _Chain(b=nn.Linear(8, 8), norm=nn.LayerNorm(8), a=nn.Linear(8, 8))
    assert _unlike(_live_rows(first, second)) == []


def test_modules_of_no_common_kind_stay_apart() -> None:
    first = _Chain(a=nn.Linear(8, 8), x=nn.Dropout())
    second = _Chain(a=nn.Linear(8, 8), y=nn.LayerNorm(8))
    assert _unlike(_live_rows(first, second)) == [
        ("removed", "x", None, ""),
        ("added", None, "y", ""),
    ]


def test_a_module_around_a_part_shifts_it_by_a_level() -> None:
    def inner() -> _Chain:
        return _Chain(up=nn.Linear(8, 32), act=nn.GELU(), down=nn.Linear(32, 8))

    first = _Chain(norm=nn.LayerNorm(8), mlp=inner())
    second = _Chain(norm=nn.LayerNorm(8), checkpointed=_Chain(mlp=inner()))
    assert _unlike(_live_rows(first, second)) == [("added", None, "checkpointed", "")]
    alone = _Chain(**dict(inner().named_children()))
    assert _unlike(_live_rows(first, alone)) == [
        ("removed", "norm", None, ""),
        ("removed", "mlp", None, ""),
    ]


def test_a_module_is_found_inside_the_one_that_wraps_it() -> None:
    first = _Chain(a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    second = _Chain(a=nn.Linear(8, 8), b=nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    assert _unlike(_live_rows(first, second)) == [
        ("added", None, "b", ""),
        ("changed", "b", "b.0", "name b → 0"),
        ("added", None, "b.1", ""),
    ]
    third = _Chain(a=nn.Linear(8, 8), b=nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)))
    assert _unlike(_live_rows(first, third)) == [
        ("changed", "b", "b", "type Linear → Sequential; weight [8, 8] → none; bias [8] → none"),
        ("added", None, "b.0", ""),
        ("added", None, "b.1", ""),
    ]


def test_a_part_that_moves_up_leaves_its_siblings_where_they_are() -> None:
    first = _Chain(norm=nn.LayerNorm(8), mlp=_Chain(up=nn.Linear(8, 32), down=nn.Linear(32, 8)))
    second = _Chain(norm=nn.LayerNorm(8), up=nn.Linear(8, 32), down=nn.Linear(32, 8))
    rows = _live_rows(first, second)
    assert ("same", "norm", "norm", "") in rows
    assert {row[:3] for row in rows if row[0] == "removed"} >= {("removed", "mlp", None)}


def test_a_list_of_unlike_layers_is_aligned_by_structure_and_not_by_index() -> None:
    def model(*widths: int) -> _Chain:
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return _Chain(layers=nn.ModuleList(layers))

    rows = _live_rows(model(8, 16, 32, 4), model(8, 16, 16, 32, 4))
    assert _unlike(rows) == [("added", None, "layers.1", "")]
    assert ("same", "layers.1", "layers.2", "") in rows
    assert _unlike(_live_rows(model(8, 16, 4), model(8, 32, 4))) == [
        ("changed", "layers.0", "layers.0", "weight [16, 8] → [32, 8]; bias [16] → [32]"),
        ("changed", "layers.1", "layers.1", "weight [4, 16] → [4, 32]"),
    ]


def test_a_single_layer_corresponds_to_many() -> None:
    def model(layers: int) -> _Chain:
        return _Chain(layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(layers)))

    assert _unlike(_live_rows(model(1), model(6))) == [
        ("changed", "layers.0", "layers.0–5", "layers ×1 → ×6")
    ]


class _Scaled(nn.Linear):
    """A linear layer with an attribute."""

    def __init__(self, **attributes: float) -> None:
        super().__init__(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)


def _stack(make: Callable[[int], nn.Module], layers: int = 4) -> _Chain:
    return _Chain(layers=nn.ModuleList(make(index) for index in range(layers)))


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda index: _Scaled(layer_idx=index), ["layers.0–3"]),
        (lambda index: _Scaled(layer_number=index + 1), ["layers.0–3"]),
        (lambda index: _Scaled(drop_rate=index / 10), ["layers.0–3"]),
        (lambda index: _Scaled(dilation=2**index), [f"layers.{index}" for index in range(4)]),
        (lambda index: _Scaled(window=index % 2), ["layers.0, 2", "layers.1, 3"]),
        (lambda index: _Scaled(scale=index % 2 / 2), ["layers.0, 2", "layers.1, 3"]),
    ],
)
def test_layers_fold_unless_more_than_their_number_differs(
    make: Callable[[int], nn.Module], paths: list[str]
) -> None:
    trace = _live(_stack(make))
    found = [row[1] for row in _rows(trace, trace)]
    assert [path for path in found if path and path.startswith("layers.")] == paths


def test_numbers_of_layers_are_no_change() -> None:
    first = _stack(lambda index: _Scaled(layer_idx=index), layers=1)
    second = _stack(lambda index: _Scaled(layer_idx=index + 3), layers=5)
    assert _unlike(_live_rows(first, second)) == [
        ("changed", "layers.0", "layers.0–4", "layers ×1 → ×5")
    ]


def test_a_module_that_becomes_a_layer() -> None:
    def inner() -> _Chain:
        return _Chain(up=nn.Linear(8, 32), down=nn.Linear(32, 8))

    rows = _live_rows(_Chain(mlp=inner()), _Chain(mlps=nn.ModuleList([inner(), inner()])))
    assert _unlike(rows) == [
        ("added", None, "mlps", ""),
        ("changed", "mlp", "mlps.0–1", "name mlp → 0; layers ×1 → ×2"),
    ]


def test_a_stack_is_not_a_list_inside_one_layer_of_another() -> None:
    """T5's first block differs from the others, and each has a list of its parts."""

    def rows(first: str, second: str) -> dict[str | None, str | None]:
        traces = [_trace(small_models.CONFIGS[name]()) for name in (first, second)]
        return {row[1]: row[2] for row in _rows(*traces)}

    partner = rows("t5", "whisper")
    for stack in ("encoder", "decoder"):
        assert partner[stack] == f"model.{stack}"
        assert partner[f"{stack}.block"] == f"model.{stack}.layers"


def test_layers_in_layers_fold_and_count_as_their_product() -> None:
    def model(experts: int) -> _Chain:
        return _stack(
            lambda _: _Chain(experts=nn.ModuleList(nn.Linear(8, 8) for _ in range(experts)))
        )

    rows = structural_diff(_live(model(2)), _live(model(3)))
    expert = rows[-1]
    assert expert.first is not None
    assert expert.second is not None
    assert expert.first.place.path == "layers.0–3.experts.0–1"
    assert (expert.first.place.layers, expert.second.place.layers) == (8, 12)
    assert expert.first.place.layer_indices == (0, 1, 2, 3)
    assert [change_text(change) for change in expert.changes] == ["layers ×2 → ×3"]


def test_modules_without_names_in_common_and_a_single_module() -> None:
    assert _live_rows(nn.Linear(8, 8), nn.Linear(8, 4)) == [
        ("changed", "", "", "weight [8, 8] → [4, 8]; bias [8] → [4]")
    ]
    wrapped = nn.Sequential(OrderedDict(fc=nn.Linear(8, 8)))
    statuses = Counter(row[0] for row in _live_rows(nn.Linear(8, 8), wrapped))
    assert statuses == {"added": 1, "same": 1}


# the alignment of sequences


def test_the_cheapest_alignment_is_found_and_ties_are_not_certain() -> None:
    costs = [[0.5, 2.0], [2.0, 0.25]]
    found = align_sequences(costs, [1, 1], [1, 1], margin=0.01)
    assert [(m.first, m.second, m.is_certain) for m in found] == [(0, 0, True), (1, 1, True)]
    tied = align_sequences([[0.5], [0.5]], [1, 1], [1], margin=0.01)
    assert [(m.first, m.second, m.is_certain) for m in tied] == [(0, 0, False)]
    assert align_sequences([[float("inf")]], [1], [1], margin=0.01) == []
    assert align_sequences([], [], [1], margin=0.01) == []


# the table


def test_the_table_has_both_models_of_each_row() -> None:
    table = differences_table(_trace(small_models.llama()), _trace(small_models.qwen3()))
    rows = table.set_index("path_second")
    layer = "model.layers.0–1"
    q = rows.loc[f"{layer}.self_attn.q_proj"]  # 4 heads: of 16 in Llama, of 32 in Qwen3
    assert q["status"] == "changed"
    assert q["path_first"] == f"{layer}.self_attn.q_proj"
    assert q["change"] == "weight [64, 64] → [128, 64]"
    assert (q["type_first"], q["type_second"]) == ("Linear", "Linear")
    assert (q["layers_first"], q["layers_second"]) == (2, 2)
    assert (q["params_first"], q["params_second"]) == (4096, 8192)
    assert (q["weight_shapes_first"], q["weight_shapes_second"]) == ([(64, 64)], [(128, 64)])
    assert q["layer_indices_first"] == [0, 1]
    new = rows.loc[f"{layer}.self_attn.q_norm"]
    assert new["status"] == "added"
    of_first = [name for name in table if name.endswith("_first")]
    assert all(pd.isna(new[name]) for name in of_first)
    assert new["params_second"] == new["params_total_second"] == 32
    mlp = rows.loc[f"{layer}.mlp"]
    assert (mlp["params_second"], mlp["params_total_second"]) == (0, 3 * 64 * 96)


def test_a_report_has_the_difference_and_its_files() -> None:
    report = answer(parse_line("distilgpt2 --compare gpt2 --context 8").request)
    name = "distilgpt2.prefill.b1.c8.beside.gpt2.differences.csv"
    lines = report.files()[name].decode("utf-8-sig").splitlines()
    assert len(lines) == 1 + len(report.differences)
    (written,) = (row for row in json.loads(report.json())["tables"]["differences"]
                  if row["status"] != "same")  # fmt: skip
    assert written["path_first"] == "transformer.h.0–5"
    assert written["path_second"] == "transformer.h.0–11"
    assert written["layer_indices_second"] == list(range(12))
    assert written["change"] == "layers ×6 → ×12"


@pytest.mark.parametrize("name", ["differences", "comparison"])
def test_without_a_second_model_there_is_no_difference(name: str) -> None:
    report = llmsim.trace(small_models.qwen3(), context=4)
    with pytest.raises(InvalidValue, match=f"{name} is not available.*--compare MODEL"):
        getattr(report, name)


def test_quantities_are_exact_with_ratio_and_difference() -> None:
    report = answer(parse_line("distilgpt2 --compare gpt2 --context 8").request)
    table = report.comparison
    assert '<td class="n">124,439,808</td>' in report.page()
    # gpt2: 12 layers of 12·768² + 13·768; embeddings of 50257 tokens and 1024 positions; a norm
    layer = 12 * 768**2 + 13 * 768
    rest = (50257 + 1024) * 768 + 2 * 768
    row = table.loc["parameters"]
    assert (row["distilgpt2"], row["gpt2"]) == (6 * layer + rest, 12 * layer + rest)
    assert type(row["gpt2"]) is int
    assert row["difference"] == 6 * layer
    assert row["ratio"] == (12 * layer + rest) / (6 * layer + rest)
    cache = table.loc["cache_bytes"]  # keys and values of 8 tokens in float32
    assert (cache["distilgpt2"], cache["gpt2"]) == (6 * 8 * 768 * 2 * 4, 12 * 8 * 768 * 2 * 4)
    assert (cache["ratio"], cache["difference"]) == (2, 6 * 8 * 768 * 2 * 4)
    expected = {"parameters", "parameters_active", "parameter_bytes", "cache_bytes", "flops",
                "bytes_read", "bytes_written", "arithmetic_intensity", "memory_bytes"}  # fmt: skip
    assert expected <= set(table.index)


@pytest.mark.slow
def test_large_models_are_compared_at_once() -> None:
    traces = [_trace(f"meta-llama/Llama-3.1-{size}") for size in ("405B", "70B")]
    seconds = []
    for _ in range(3):
        fresh = [replace(trace) for trace in traces]  # without what is memoized
        start = time.perf_counter()
        rows: tuple[ModuleDifference, ...] = structural_diff(*fresh)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2
    assert {row.status for row in rows} == {"same", "changed"}


def _beside(first: Trace, second: Trace) -> pd.DataFrame:
    return ReportTables(trace=first, compared=ReportTables(trace=second)).comparison


@pytest.mark.parametrize("name", ["unit", "ratio", "difference", "quantity", "gpt2"])
def test_models_with_the_name_of_another_column_get_one_of_their_own(name: str) -> None:
    trace = _trace(small_models.gpt2())
    named = replace(trace, model=replace(trace.model, name=name))
    table = _beside(named, named)
    assert len({*table}) == len([*table]) == 5
    assert list(table)[2] in (f"{name} (2)", f"{name} (3)")
    assert set(table["ratio"]) == {1}
    assert set(table["difference"]) == {0}


def test_a_quantity_that_the_first_model_has_not_has_no_ratio() -> None:
    table = _beside(_trace(small_models.bert()), _trace(small_models.gpt2()))
    cache = table.loc["cache_bytes"]
    size = 4 * 2 * 2 * 64 * 4  # 4 tokens, 2 layers, keys and values, 64 wide, float32
    assert (cache.iloc[1], cache.iloc[2], cache["difference"]) == (0, size, size)
    assert pd.isna(cache["ratio"])
