"""What an engine runs in place of the model's kernels, held against sizes worked out by hand."""

from typing import Any

import pytest
import torch
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.tensor_lifetimes import lifetimes, peak_activations
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.analyses.engine.engine_allocations import engine_allocations
from llmsim_magic.analyses.engine.engine_trace import engine_notes, engine_trace
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.analyses.time.kernel_sizes import kernel_shapes
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.hardware.kernel_shapes import Attention
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace, numel
from tests.helpers import reduced_configs, small_models

HEADS, RANK, NOPE, ROTARY, VALUE, LAYERS = 8, 32, 16, 8, 24, 3
H100 = accelerators.find("H100")


def latent_config(**changes: Any) -> transformers.PretrainedConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "vocab_size": 100,
        "q_lora_rank": 48,
        "kv_lora_rank": RANK,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROTARY,
        "v_head_dim": VALUE,
        "dtype": "bfloat16",
    }
    return transformers.DeepseekV3Config(**sizes | changes)


def attentions(trace: Trace) -> list[tuple[bool, list[tuple[int, ...]]]]:
    """Query, key and value of each fused attention of the pass, and whether it is causal."""
    record = trace.unrolled
    return [
        (kernel.causal, record.shapes(kernel.inputs[:3]))
        for kernel in record.kernels
        if "scaled_dot_product_attention" in kernel.name
    ]


def softmaxes(trace: Trace) -> int:
    kernels = trace.unrolled.kernels
    return sum("softmax" in kernel.name for kernel in kernels if not kernel.is_view)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("q_rank", [48, None])
def test_an_engine_absorbs_the_projection_of_a_cached_latent(
    attention: str, batch: int, q_rank: int | None
) -> None:
    context = 20
    config = latent_config(q_lora_rank=q_rank)
    trace = llmsim.trace(config, phase="decode", batch=batch, context=context, attn=attention).trace
    keys = context + 1
    projected = 2 * batch * keys * RANK * HEADS * (NOPE + VALUE)
    attended = 2 * batch * HEADS * keys * (NOPE + ROTARY + VALUE)
    absorbed = 2 * batch * RANK * HEADS * (NOPE + VALUE)
    latent = 2 * batch * HEADS * keys * (RANK + ROTARY + RANK)
    expected = totals(trace).flops + LAYERS * (absorbed + latent - projected - attended)
    assert totals(engine_trace(trace)).flops == expected
    whole = llmsim.trace(
        config, phase="decode", batch=batch, context=context, attn=attention, replay=False
    ).trace
    assert totals(engine_trace(whole)).flops == expected


def test_the_summary_says_what_vllm_computes_and_why_transformers_computes_more() -> None:
    summary = llmsim.trace(latent_config(), phase="decode", context=20).summary
    assert summary.value["flops_vllm"] < summary.value["flops"]
    assert "transformers applies it to every cached token" in summary.means["flops_vllm"]
    assert "flops_vllm" not in llmsim.trace(latent_config(), context=20).summary.index


def test_a_kernel_over_a_latent_reads_each_cached_token_once_for_all_heads() -> None:
    batch, keys = 2, 21
    trace = llmsim.trace(latent_config(), phase="decode", batch=batch, context=keys - 1).trace
    shapes = [
        shape
        for shapes in trace.expand_replays(kernel_shapes(engine_trace(trace), H100, "graph"))
        for shape in shapes
        if isinstance(shape, Attention)
    ]
    assert len(shapes) == LAYERS
    for shape in shapes:
        assert shape.weight_bytes == batch * keys * (RANK + ROTARY) * 2
        assert shape.flops == 2 * batch * HEADS * keys * (RANK + ROTARY + RANK)


def test_the_time_of_a_latent_is_the_engines_under_vllm_and_the_models_own_otherwise() -> None:
    config = latent_config(num_hidden_layers=2)
    for runtime, is_absorbed in (("vllm", True), ("transformers", False)):
        report = llmsim.trace(config, phase="decode", context=20, hardware="H100", runtime=runtime)
        assert ("attention latent" in set(report.times["class"].dropna())) is is_absorbed
        assert any("absorbs" in remark for remark in report.remarks()) is is_absorbed


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [
        "deepseek_v2",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_linear",
        "longcat_flash",
        "minicpm3",
        "youtu",
    ],
)
def test_every_architecture_that_caches_a_latent_is_absorbed(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    for small in reduced_configs.candidates(model_type):
        try:
            trace = llmsim.trace(small.config, phase="decode", context=9).trace
        except llmsim.LlmsimError:
            continue
        break
    record = engine_trace(trace).unrolled
    found = [kernel for kernel in record.kernels if "latent_attention" in kernel.name]
    latents = [slot for slot in trace.cache if slot.shape[:3] == (1, 1, 10)]
    assert found
    assert 2 * len(found) == len(latents)
    assert totals(engine_trace(trace)).flops < totals(trace).flops


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "t5", "mixtral", "gpt_neox", "opt"])
def test_attention_written_out_is_recognised_as_the_kernel_that_sdpa_runs(
    name: str, phase: str
) -> None:
    """`attn="sdpa"` records one kernel; that of `attn="eager"` is found again, size for size."""
    config = getattr(small_models, name)()
    fused, eager = (
        llmsim.trace(config, phase=phase, context=7, batch=2, attn=attention).trace
        for attention in ("sdpa", "eager")
    )
    assert attentions(engine_trace(eager)) == attentions(fused)
    assert softmaxes(engine_trace(eager)) == softmaxes(fused)  # a router's stay
    assert engine_trace(fused) is fused
    assert totals(engine_trace(eager)).flops == totals(eager).flops


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_an_encoders_attention_is_recognised_too(name: str) -> None:
    config = getattr(small_models, name)()
    fused, eager = (
        llmsim.trace(config, context=7, batch=2, attn=attention).trace
        for attention in ("sdpa", "eager")
    )
    assert attentions(engine_trace(eager)) == attentions(fused)


def sinks() -> transformers.PretrainedConfig:
    return transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=100,
        sliding_window=8,
    )


@pytest.mark.parametrize("config", [sinks(), small_models.gemma2()], ids=["sinks", "soft cap"])
def test_sinks_and_capped_scores_do_not_hide_an_attention(config: Any) -> None:
    trace = llmsim.trace(config, context=7, batch=2, attn="eager").trace
    shape = (2, config.num_key_value_heads, 7, config.head_dim)
    query = (2, config.num_attention_heads, 7, config.head_dim)
    assert (
        attentions(engine_trace(trace))
        == [(True, [query, shape, shape])] * config.num_hidden_layers
    )


def test_an_engine_holds_no_score_matrix() -> None:
    trace = llmsim.trace(sinks(), context=1024).trace
    scores = 8 * 1024 * 1024 * 4
    assert peak_activations(trace).nbytes > scores
    assert peak_activations(engine_trace(trace)).nbytes < scores / 2


def test_memory_is_that_of_the_runtimes_own_attention() -> None:
    trace = llmsim.trace(sinks(), context=2048).trace
    scores = 8 * 2048 * 2048 * 4
    own = memory(trace, runtime=runtimes.find("transformers"))
    assert own.activations > scores
    served = memory(trace, runtime=runtimes.find("vllm"))
    assert served.activations < scores
    assert any("no score matrix" in said for said in served.assumptions)
    assert not any("no score matrix" in said for said in own.assumptions)


def test_routing_and_pooling_are_no_attention() -> None:
    """A softmax over a router's logits, and scores that are returned, stay as they are."""
    mixture = llmsim.trace(small_models.mixtral(), context=7).trace
    assert engine_trace(mixture) is mixture
    assert engine_notes(mixture) == ()


TOKENS, VOCABULARY = 512, 5000
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "dtype": "float32",
}


def held(trace: Trace) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Bytes of each storage of activations that the pass holds, and the largest shape in it."""
    record = trace.unrolled
    shapes: dict[int, list[tuple[int, ...]]] = {}
    for tensor in record.tensors:
        shapes.setdefault(tensor.storage, []).append(tensor.shape)
    return {
        life.storage: (life.nbytes, max(shapes[life.storage], key=numel))
        for life in lifetimes(record, ("activation",))
    }


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL),
        transformers.CohereConfig(**SMALL, logit_scale=0.5),
        transformers.Gemma2Config(**SMALL, final_logit_softcapping=30.0),
        transformers.Gemma2Config(**SMALL, final_logit_softcapping=None),
        transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    ],
    ids=["plain", "scaled", "capped", "uncapped", "divided"],
)
def test_an_engine_holds_the_logits_of_last_tokens_only(config: Any, replay: bool) -> None:
    """Whatever follows the head; a plain call holds those of every token."""
    batch = 2
    trace = llmsim.trace(config, context=TOKENS, batch=batch, replay=replay).trace
    assert peak_activations(trace).nbytes >= batch * TOKENS * VOCABULARY * 4
    found = [
        nbytes
        for nbytes, shape in held(engine_allocations(trace)).values()
        if shape[-1] == VOCABULARY
    ]
    assert found
    assert set(found) == {batch * VOCABULARY * 4}


def test_logits_are_of_every_token_where_the_model_does_not_generate() -> None:
    trace = llmsim.trace(small_models.bert(), context=7).trace
    assert peak_activations(engine_allocations(trace)) == peak_activations(trace)


def test_a_pipeline_stage_without_a_head_hands_on_every_token() -> None:
    build = {"context": TOKENS, "pp": 2, "hardware": "H100"}
    report = llmsim.trace(transformers.LlamaConfig(**SMALL | {"num_hidden_layers": 4}), **build)
    assert report.planner is not None
    first, last = report.planner.stages(Parallel(pp=2), report.trace.workload)
    for stage, nbytes in ((first, TOKENS * 16 * 4), (last, VOCABULARY * 4)):
        record = engine_allocations(stage).unrolled
        storage = record.tensors[record.results[0]].storage
        assert record.storages[storage].nbytes == nbytes


def bloom() -> transformers.PretrainedConfig:
    return transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=3, n_head=2)


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize(
    "config",
    [sinks(), small_models.gemma2(), small_models.t5(), small_models.mistral(), bloom()],
    ids=["sinks", "soft cap", "position bias", "sliding window", "alibi"],
)
def test_an_engine_holds_no_mask(config: Any, replay: bool) -> None:
    trace = llmsim.trace(config, context=TOKENS, replay=replay).trace
    square = (TOKENS, TOKENS)
    assert any(shape[-2:] == square for _, shape in held(trace).values())
    assert not any(shape[-2:] == square for _, shape in held(engine_allocations(trace)).values())


def test_what_the_model_computes_and_never_reads_stays() -> None:
    class Idle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.idle = torch.cat([x] * 8)
            return x + 1

    trace = llmsim.trace(Idle(), inputs=torch.zeros(4, 4)).trace
    assert peak_activations(engine_allocations(trace)) == peak_activations(trace)
