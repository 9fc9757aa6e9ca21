"""Each rank holds its shards, computes its share and records its collectives."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.memory.memory import cache_bytes
from llmsim_magic.analyses.parallel.collectives import collectives
from llmsim_magic.analyses.parallel.shards import shards
from llmsim_magic.catalog import models
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.models.workloads import trace_workload
from llmsim_magic.simulate.request import Build
from llmsim_magic.views.tables.memory import collectives_table, ranks_table, shards_table
from llmsim_magic.views.tables.modules import layers_table
from llmsim_magic.views.tables.operators import ops_table
from tests.helpers import small_models

PREFILL = Workload("prefill", 2, 7)
DECODE = Workload("decode", 2, 7)
SPLIT = ("llama", "qwen3", "mixtral", "mistral", "gemma2", "gpt_neox")


def spread(model: Any, workload: Workload = PREFILL, **sizes: int) -> Trace:
    return trace_workload(
        model_recipe(model, Build(parallel=Parallel(**sizes))), workload, replay=True
    )


def by_all(trace: Trace) -> int:
    """FLOPs of what no plan splits."""
    ops = ops_table(trace)
    return int(ops[ops.path.str.endswith(("gate", "rotary_emb"))].flops.sum())


# shapes and bytes, by hand


def sliced(name: str, parameter: torch.Tensor, style: str | None, ranks: int) -> torch.Tensor:
    """The first rank's part of a real parameter, as transformers documents its style."""
    if style in ("colwise", "colwise_gather_output"):
        return parameter.chunk(ranks, dim=max(parameter.dim() - 2, 0))[0]
    if style in ("rowwise", "rowwise_split_input"):
        return parameter if parameter.dim() == 1 else parameter.chunk(ranks, dim=-1)[0]
    if style in ("embedding_rowwise", "grouped_gemm"):
        return parameter.chunk(ranks, dim=0)[0]
    if style == "packed_colwise":
        halves = parameter.chunk(2, dim=-2)
        return torch.cat([half.chunk(ranks, dim=-2)[0] for half in halves], dim=-2)
    assert style in (None, "replicated_with_grad_allreduce"), (name, style)
    return parameter


@pytest.mark.parametrize("name", SPLIT)
def test_each_parameter_is_cut_as_its_style_says(name: str) -> None:
    model = small_models.build(name)
    real = dict(model.named_parameters())
    rank = spread(small_models.CONFIGS[name](), tp=2)
    whole = spread(small_models.CONFIGS[name]())
    found = {shard.name: shard for shard in shards(whole, rank)}
    assert found.keys() == real.keys()
    for path, parameter in real.items():
        part = sliced(path, parameter, found[path].style, 2)
        assert found[path].shape == tuple(part.shape), path
        assert found[path].nbytes == part.numel() * part.element_size()
    assert sum(shard.nbytes for shard in found.values()) == totals(rank).parameter_bytes


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=str)
def test_a_rank_does_its_share_of_the_work(name: str, workload: Workload) -> None:
    """All that its plan splits is halved; routers and rotary tables alone are done by both."""
    whole = spread(small_models.CONFIGS[name](), workload)
    rank = spread(small_models.CONFIGS[name](), workload, tp=2)
    assert 2 * (totals(rank).flops - by_all(whole)) == totals(whole).flops - by_all(whole)
    assert cache_bytes(rank) * 2 == cache_bytes(whole)


def test_heads_are_shared_out() -> None:
    ops = ops_table(spread(small_models.llama(), DECODE, tp=2))
    attention = ops[ops.op == "scaled_dot_product_attention"].iloc[0]
    query, key, _ = attention.input_shapes
    assert (query[1], key[1]) == (2, 1)  # of 4 and 2 heads


def test_tied_weights_stay_tied() -> None:
    rank = spread(small_models.qwen3(), tp=2)
    tied = [p for p in rank.parameters if p.tied_to is not None]
    assert [p.name for p in tied] == ["lm_head.weight"]
    assert tied[0].shape == (small_models.VOCABULARY // 2, 64)


def test_what_is_whole_again_at_once_may_be_uneven() -> None:
    config = small_models.llama()
    config.vocab_size = 101
    rank = spread(config, tp=2)
    assert [p.shape for p in rank.parameters if p.name == "lm_head.weight"] == [(51, 64)]
    assert rank.recorded.shapes(rank.recorded.results)[0] == (2, 7, 101)


@pytest.mark.parametrize("name", SPLIT)
def test_a_rank_returns_what_the_whole_model_does(name: str) -> None:
    whole, rank = (spread(small_models.CONFIGS[name](), DECODE, tp=tp).recorded for tp in (1, 2))
    assert rank.shapes(rank.results)[0] == whole.shapes(whole.results)[0]


@pytest.mark.parametrize("name", SPLIT)
def test_replayed_layers_of_a_rank_do_as_those_that_run(name: str) -> None:
    recipe = model_recipe(small_models.CONFIGS[name](), Build(parallel=Parallel(tp=2)))
    replayed, ran = (trace_workload(recipe, PREFILL, replay=replay) for replay in (True, False))
    assert replayed.replays
    assert not ran.replays
    assert ops_table(replayed).equals(ops_table(ran))


def test_a_live_module_is_spread_and_left_as_it_was() -> None:
    model = small_models.build("llama")
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    rank = spread(model, tp=2)
    assert totals(rank).flops == totals(spread(small_models.llama(), tp=2)).flops
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == before
    assert model.model.layers[0].self_attn.q_proj.out_features == 64


# what is exchanged


def test_two_sums_a_layer_one_for_the_table_and_the_logits_are_gathered() -> None:
    rank = spread(small_models.llama(), tp=2)
    found = collectives(rank)
    hidden = 2 * 7 * 64 * 4
    sums = 2 * 2 + ("model.embed_tokens" in rank.model.plan)  # as transformers 5.23 has it
    assert [each.kind for each in found] == ["all_reduce"] * sums + ["all_gather"]
    assert all(each.nbytes == hidden for each in found[:-1])
    assert found[-1].nbytes == 2 * 7 * small_models.VOCABULARY * 4
    assert [each.wire_bytes for each in found] == [hidden] * sums + [found[-1].nbytes // 2]


def test_a_ring_of_eight_passes_seven_eighths_twice() -> None:
    config = small_models.llama()
    config.num_attention_heads = config.num_key_value_heads = 8
    config.head_dim = 8
    found = collectives(spread(config, tp=8))
    assert all(each.ranks == 8 for each in found)
    assert found[0].wire_bytes == found[0].nbytes * 2 * 7 // 8
    assert found[-1].wire_bytes == found[-1].nbytes * 7 // 8


def test_collectives_are_operators_that_others_wait_for() -> None:
    rank = spread(small_models.llama(), tp=2)
    ops = ops_table(rank)
    table = collectives_table(rank)
    for row in table.itertuples():
        assert ops.loc[row.order, "op"] == row.collective
        assert ops.loc[row.order, "flops"] == 0
        assert ops.loc[row.order, "depends_on"]
    readers = {source for sources in ops.depends_on for source in sources}
    assert set(table.order) <= readers
    assert layers_table(rank).flops.sum() == totals(rank).flops


def test_one_device_exchanges_nothing() -> None:
    assert collectives(spread(small_models.llama())) == ()
    assert collectives_table(spread(small_models.llama())).empty


# experts


@pytest.mark.parametrize("sizes", [{"ep": 2}, {"tp": 2, "ep": 2}], ids=str)
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=str)
def test_each_rank_has_its_experts_and_its_share_of_the_tokens(
    sizes: dict[str, int], workload: Workload
) -> None:
    whole, rank = (
        spread(small_models.mixtral(), workload),
        spread(small_models.mixtral(), workload, **sizes),
    )
    experts = {p.name: p.shape for p in whole.parameters if len(p.shape) == 3}
    held = {p.name: p.shape for p in rank.parameters if len(p.shape) == 3}
    assert held == {name: (shape[0] // 2, *shape[1:]) for name, shape in experts.items()}

    def grouped(trace: Trace) -> int:
        return sum(k.flops or 0 for k in trace.kernels if "grouped_mm" in k.name)

    assert grouped(rank) * 2 == grouped(whole)
    kinds = [each.kind for each in collectives(rank)]
    attention = 2 + ("model.embed_tokens" in rank.model.plan) if sizes.get("tp") else 0
    assert kinds.count("all_reduce") == 2 + attention
    assert any("experts" in note for note in rank.notes)


def test_more_ranks_than_a_token_has_experts() -> None:
    """One token with two of four experts on four ranks: half a row each, which is one."""
    rank = spread(small_models.mixtral(), Workload("decode", 1, 7), ep=4)
    rows = [
        rank.tensors[kernel.inputs[0]].shape[0]
        for kernel in rank.kernels
        if "grouped_mm" in kernel.name
    ]
    assert set(rows) == {1}


# stages


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=str)
def test_stages_have_all_layers_between_them(name: str, workload: Workload) -> None:
    whole = spread(small_models.CONFIGS[name](), workload)
    each = CapacityPlanner(small_models.CONFIGS[name]()).stages(Parallel(pp=2), workload)
    tables = sum(by_all(stage) for stage in each) - by_all(whole)  # of positions, for each
    assert sum(totals(stage).flops for stage in each) == totals(whole).flops + tables
    assert sum(cache_bytes(stage) for stage in each) == cache_bytes(whole)
    held = sum(totals(stage).parameter_bytes for stage in each)
    tied = {p.tied_to for p in whole.parameters if p.tied_to}
    twice = sum(p.nbytes for p in whole.parameters if p.name in tied)
    assert held == totals(whole).parameter_bytes + twice


def test_a_stage_sends_what_the_next_receives() -> None:
    first, second = (spread(small_models.llama(), pp=2, stage=stage) for stage in (0, 1))
    sent, received = collectives(first), collectives(second)
    assert [each.kind for each in sent] == ["send"]
    assert [each.kind for each in received] == ["recv"]
    assert sent[0].nbytes == received[0].nbytes == sent[0].wire_bytes == 2 * 7 * 64 * 4


def test_the_last_stage_takes_the_layers_that_are_left() -> None:
    config = small_models.gemma2()  # 3 layers
    layers = [layers_table(spread(config, pp=2, stage=stage)) for stage in (0, 1)]
    worked = [table[table.flops.fillna(0) > 0].layer.dropna().tolist() for table in layers]
    assert worked == [[0], [1, 2]]


def test_stages_of_ranks() -> None:
    rank = spread(small_models.llama(), tp=2, pp=2, stage=1)
    assert rank.model.parallel.ranks == 4
    assert {each.kind for each in collectives(rank)} == {"recv", "all_reduce", "all_gather"}
    assert len(shards_table(shards(spread(small_models.llama()), rank))) == len(
        dict(small_models.build("llama").named_parameters())
    )
    assert list(ranks_table({}).columns)[-1] == "total"


# what cannot be


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        (
            "llama",
            {"tp": 3},
            "tp must be one of 1, 2, not 3, which does not evenly divide the 4 attention heads",
        ),
        (
            "llama",
            {"tp": 4},
            "tp must be one of 1, 2, not 4, which does not evenly divide the 2 key-value heads",
        ),
        ("gpt2", {"tp": 2}, "GPT2LMHeadModel has no tensor parallel plan"),
        ("llama", {"ep": 2}, "LlamaForCausalLM has no expert parallel plan"),
        ("mixtral", {"ep": 3}, "ep must be one of 1, 2, 4"),
        ("llama", {"pp": 3}, "pp must be from 1 to its 2 layers"),
        ("gpt2", {"pp": 2}, "GPT2LMHeadModel has no pipeline parallel plan"),
        ("llama", {"tp": 0}, "tp must be a whole number from 1"),
        ("llama", {"tp": 2, "ep": 4}, "ep must be 1 or the same as tp, 2"),
        ("llama", {"pp": 2, "stage": 2}, "stage must be a stage from 0 to 1"),
    ],
    ids=str,
)
def test_what_cannot_be_spread_says_why_in_one_line(
    name: str, sizes: dict[str, int], said: str
) -> None:
    with pytest.raises(InvalidValue) as error:
        spread(small_models.CONFIGS[name](), **sizes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_without_a_plan_is_refused() -> None:
    with pytest.raises(InvalidValue, match="Linear has no tensor parallel plan"):
        model_recipe(torch.nn.Linear(4, 4), Build(parallel=Parallel(tp=2)))


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-30B-A3B", "zai-org/GLM-4.5-Air", "microsoft/phi-4", "HuggingFaceTB/SmolLM3-3B"],
)
def test_catalogued_models_are_halved_by_their_plans(name: str) -> None:
    """What the plan does not name is held by both ranks, and is little of the work."""
    assert name in models.entries()
    whole, rank = (spread(name, Workload("decode", 1, 16), tp=tp) for tp in (1, 2))
    for shard in shards(whole, rank):
        is_cut = shard.style not in (None, "replicated_with_grad_allreduce")
        assert shard.nbytes == (shard.full_bytes // 2 if is_cut else shard.full_bytes)
    assert math.isclose(totals(rank).flops / totals(whole).flops, 0.5, abs_tol=5e-3)


def test_every_style_of_transformers_is_known() -> None:
    from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

    from llmsim_magic.capture.parallel.tensor_parallel_plan import STYLES

    # Of no model's plan: an engine's own kernel, and a layout of the sequence.
    unused = {"sequence_parallel", "megamoe_router", "megamoe_experts"}
    assert set(ALL_PARALLEL_STYLES.keys()) - unused <= STYLES.keys()
    assert transformers.__version__


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gpt_neox"])
def test_backward_sums_the_gradient_of_what_each_sharded_module_reads(
    name: str, checkpointing: bool
) -> None:
    trace = llmsim.trace(
        getattr(small_models, name)(),
        phase="train",
        batch=2,
        context=7,
        tp=2,
        checkpointing=checkpointing,
    ).trace
    styles = Counter(style for path, style in trace.model.plan.items() if path in modules_of(trace))
    columns = styles["colwise"] + styles["colwise_gather_output"] + styles["colwise_rep"]
    experts = 2 * styles["moe_tp_experts"]  # hidden states and the weights of experts
    norms = styles["replicated_with_grad_allreduce"]
    sent = [each for each in collectives(trace) if part_of(trace, each.order) == "backward"]
    assert len(sent) == columns + experts + norms
    assert {each.kind for each in sent} == {"all_reduce"}
    forward = Counter(
        each.kind for each in collectives(trace) if part_of(trace, each.order) == "forward"
    )
    assert forward == Counter(
        each.kind for each in collectives(spread(getattr(small_models, name)(), tp=2))
    )


def test_a_trained_rank_has_the_gradients_of_its_shards() -> None:
    trace = llmsim.trace(
        small_models.qwen3(), phase="train", batch=2, context=7, tp=2, optimizer="sgd"
    ).trace
    held = {each.name: each.nbytes for each in trace.parameters if each.tied_to is None}
    storages = trace.recorded.storages
    gradients = {each.name: each.nbytes for each in storages if each.role == "gradient"}
    assert gradients == {name: held[name] for name in gradients}
    assert set(gradients) == {name for name in held if "weight" in name}


def test_a_plan_whose_backward_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidValue, match="not simulated in backward"):
        llmsim.trace(small_models.mixtral(), phase="train", ep=2)


def modules_of(trace: Trace) -> set[str]:
    return {module.path for module in trace.modules}


def part_of(trace: Trace, order: int) -> str:
    return trace.operators[order].part
