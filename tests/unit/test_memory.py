"""Weights and cache are exact to the byte; activations are close to torch's peak."""

import csv
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.tensor_lifetimes import (
    lifetimes,
    peak_activations,
    peak_with_cache,
)
from llmsim_magic.analyses.memory.capacity import Limit, WorkLimitReached, _largest, likely_limit
from llmsim_magic.analyses.memory.memory import cache_bytes, memory, most_reserved
from llmsim_magic.analyses.memory.weights import weights
from llmsim_magic.analyses.quantization.storage_layouts import packing_from_config
from llmsim_magic.capture.kernels.tensors import held_tensors
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.hardware.dtypes import WEIGHT_DTYPES
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import never_cancelled
from llmsim_magic.simulate.hardware import capacity_planner
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner, Setup
from llmsim_magic.simulate.sweeps import workload_tracer
from llmsim_magic.views.notes import memory_notes
from llmsim_magic.views.tables.memory import capacity_table, memory_table
from tests.helpers import small_models
from tests.helpers.allocation_peak import peak
from tests.helpers.cache_names import cache_of

PUBLISHED = list(
    csv.DictReader(Path(__file__).parents[1].joinpath("data", "published_memory.csv").open())
)
GIB = 2**30


def traced(model: Any, phase: str = "prefill", batch: int = 2, context: int = 7) -> Trace:
    return llmsim.trace(model, phase=phase, batch=batch, context=context).trace


# weights


@pytest.mark.parametrize("name", small_models.CONFIGS)
def test_weights_are_those_of_the_real_model_to_the_byte(name: str) -> None:
    model = small_models.build(name)
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights(traced(small_models.CONFIGS[name]())).nbytes == real


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_cast_model_is_what_torch_casts_it_to(dtype: str) -> None:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    model = small_models.build("llama").to(kinds[dtype])
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights(traced(small_models.llama()), dtype).nbytes == real


def linear_shapes(model: Any) -> list[tuple[int, int]]:
    """Outputs and inputs of the linear layers inside the layers of a real model."""
    return [
        (part.out_features, part.in_features)
        for path, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and ".layers." in path
    ]


def others(model: Any, itemsize: int) -> int:
    inside = sum(outputs * inputs for outputs, inputs in linear_shapes(model))
    return (sum(p.numel() for p in model.parameters()) - inside) * itemsize


def test_int4_holds_codes_scales_and_zero_points_of_groups() -> None:
    """The inputs of the small model are 64 and 96: one group of 128 that is not full."""
    model = small_models.build("llama")
    quantised = sum(o * i // 2 + o * (2 + 0.5) for o, i in linear_shapes(model))
    assert weights(traced(small_models.llama()), "int4").nbytes == quantised + others(model, 4)


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_eight_bits_hold_a_scale_for_each_output(dtype: str) -> None:
    model = small_models.build("llama")
    quantised = sum(o * i + 2 * o for o, i in linear_shapes(model))
    assert weights(traced(small_models.llama()), dtype).nbytes == quantised + others(model, 4)


def test_experts_are_quantised_and_routers_are_not() -> None:
    model = small_models.build("mixtral")
    found = weights(traced(small_models.mixtral()), "fp8")
    experts = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    attention = sum(o * i for o, i in linear_shapes(model))
    assert found.packed_parameters == experts + attention


def test_transposed_linear_layers_are_linear_layers() -> None:
    model = small_models.build("gpt2")
    inside = [p for n, p in model.named_parameters() if ".h." in n and p.dim() == 2]
    found = weights(traced(small_models.gpt2()), "int8")
    assert found.packed_parameters == sum(p.numel() for p in inside)
    assert found.scales == 2 * sum(p.shape[1] for p in inside)


@pytest.mark.parametrize("name", small_models.CONFIGS)
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_no_parameter_is_lost_or_counted_twice(name: str, dtype: str) -> None:
    trace = traced(small_models.CONFIGS[name]())
    found = weights(trace, dtype)
    total = sum(p.numel for p in trace.parameters if p.tied_to is None and not p.is_buffer)
    itemsize = {"bf16": 2, "fp16": 2, "fp32": 4}.get(dtype, 4)
    assert found.unpacked == (total - found.packed_parameters) * itemsize


def test_deepseek_is_what_its_files_hold() -> None:
    """Its safetensors index gives 680,571,043,840 fp8 codes and 41,555,600 float32 values.

    With them come those of one more layer of experts, the multi-token predictor, which the model
    itself does not run, and of the routers' corrections: 256 in each of 59 layers.
    """
    trace = llmsim.trace("deepseek-ai/DeepSeek-V3", context=8).trace
    found = weights(trace)
    shapes = {p.name: p.shape for p in trace.parameters if p.name.startswith("model.layers.60.")}
    linear = [s for n, s in shapes.items() if "layernorm" not in n and "gate." not in n]
    codes = sum(torch.Size(shape).numel() for shape in linear)
    scales = sum(
        torch.Size(shape[:-2]).numel() * -(-shape[-2] // 128) * -(-shape[-1] // 128)
        for shape in linear
    )
    assert found.codes + codes == 680_571_043_840
    assert found.scales // 4 + scales + 59 * 256 == 41_555_600


def test_mxfp4_packs_experts_alone_with_a_byte_for_each_32() -> None:
    trace = llmsim.trace("openai/gpt-oss-20b", context=8).trace
    experts = [p for p in trace.parameters if p.name.endswith(("gate_up_proj", "down_proj"))]
    numel = sum(p.numel for p in experts)
    found = weights(trace)
    assert found.packed_parameters == numel
    assert (found.codes, found.scales) == (numel // 2, numel // 32)


CASES: list[tuple[dict[str, Any], float]] = [
    # bytes of a matrix of 256 outputs and 512 inputs, from the tensors that each format stores
    ({"quant_method": "gptq", "bits": 4, "group_size": 128},
     256 * 512 / 2 + 4 * 256 * 2 + 4 * 256 / 2 + 512 * 4),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 256 * 512 + 256 * 2 + 256 + 512 * 4),
    ({"quant_method": "awq", "bits": 4, "group_size": 64}, 256 * 512 / 2 + 8 * 256 * 2.5),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": False},
     256 * 512 / 2 + 8 * 256 * 2),
    ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, 256 * 512 + 256 * 4),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
     256 * 512 / 2 + 256 * 512 / 64 * 4 + 16 * 4),
    ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
     256 * 512 / 2 + 256 * 512 / 64 + 256 * 512 / 64 / 256 * 4 + (16 + 256 + 1) * 4),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 256 * 512 + 2 * 4 * 4),
    ({"quant_method": "fp8"}, 256 * 512 + 4),
    ({"quant_method": "fbgemm_fp8"}, 256 * 512 + 256 * 4),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
        "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}}}},
     256 * 512 + 256 * 2),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128,
        "symmetric": False}}}}, 256 * 512 / 2 + 4 * 256 * 2.5),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}}}},
     256 * 512 / 2 + 256 * 512 / 16 + 4),
]  # fmt: skip


@pytest.mark.parametrize(("config", "nbytes"), CASES)
def test_a_config_is_read_as_its_format_stores_it(config: dict[str, Any], nbytes: float) -> None:
    packing = packing_from_config(config, "model")
    assert packing is not None
    assert sum(packing.parts((256, 512))) == nbytes


@pytest.mark.parametrize("structure", [[128, 128], "128x128"])
def test_blocks_are_written_in_two_ways(structure: Any) -> None:
    weights_of = {"num_bits": 8, "strategy": "block", "block_structure": structure}
    groups = {"group_0": {"weights": weights_of}}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    packing = packing_from_config(config, "model")
    assert packing is not None
    assert sum(packing.parts((256, 512))) == 256 * 512 + 2 * 4 * 2


def test_blocks_at_the_edges_of_a_matrix_have_scales_too() -> None:
    packing = packing_from_config({"quant_method": "fp8", "weight_block_size": [128, 128]}, "model")
    assert packing is not None
    assert packing.parts((3, 130, 129)) == (3 * 130 * 129, 3 * 2 * 2 * 4)


def test_a_checkpoint_of_its_own_config_is_counted_by_it() -> None:
    config = small_models.llama()
    config.quantization_config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "modules_to_not_convert": ["down_proj"],
    }
    model = small_models.build("llama")
    packed = [shape for shape in linear_shapes(model) if shape != (64, 96)]
    kept = sum(o * i for o, i in linear_shapes(model)) - sum(o * i for o, i in packed)
    expected = sum(o * i / 2 + o * 2 * 2.5 + i * 4 for o, i in packed) + kept * 2
    assert weights(traced(config)).nbytes == expected + others(model, 2)


def test_an_unknown_packing_names_those_that_are_known() -> None:
    config = small_models.llama()
    config.quantization_config = {"quant_method": "spqr"}
    trace = traced(config)
    with pytest.raises(InvalidValue, match=r"only gptq, awq.*weight_dtype") as said:
        weights(trace)
    assert "\n" not in str(said.value)
    assert weights(trace, "int8").nbytes > 0


def test_an_unknown_dtype_is_one_line_with_the_legal_ones() -> None:
    trace = traced(small_models.llama())
    with pytest.raises(InvalidValue, match=r"weight_dtype must be one of int4, int8, fp8"):
        weights(trace, "int3")
    with pytest.raises(InvalidValue, match=r"kv_dtype must be one of int8, fp8, bf16"):
        cache_bytes(trace, "int4")


# cache


@pytest.mark.parametrize(("name", "phase"), small_models.WORKLOADS)
def test_the_cache_is_the_real_one_to_the_byte(name: str, phase: str) -> None:
    model = small_models.build(name)
    with torch.no_grad():
        output = model(**small_models.inputs(name, phase, model))
    cache = cache_of(output)
    real = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for _, tensor in held_tensors("cache", cache)
        if tensor.dim()
    }
    assert cache_bytes(traced(small_models.CONFIGS[name](), phase)) == sum(real.values())


def test_keys_and_values_take_the_dtype_given_and_states_keep_theirs() -> None:
    keys = traced(small_models.llama(), "decode")
    assert cache_bytes(keys, "fp8") * 4 == cache_bytes(keys, "fp32") == cache_bytes(keys)
    state = traced(small_models.mamba(), "decode")
    assert cache_bytes(state, "fp8") == cache_bytes(state)


# activations


@pytest.mark.slow
def test_peak_activations_are_those_that_torch_makes() -> None:
    """To the byte for more than half of real small models in both phases, and 1 % for all.

    What differs is made inside torch's own CPU attention, or the few bytes of a mask.
    """
    errors = []
    for name, phase in small_models.WORKLOADS:
        model = small_models.build(name)
        real = peak(model, small_models.inputs(name, phase, model))
        ours = peak_with_cache(
            traced(model, phase, small_models.BATCH, small_models.CONTEXT)
        ).nbytes
        errors.append(abs(ours / real - 1))
    assert statistics.median(errors) == 0
    assert max(errors) < 1e-2


def test_peak_activations_of_a_long_prompt_are_those_that_torch_makes() -> None:
    """Attention on a CPU keeps a float32 of each query and head beside its output."""
    config = transformers.LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(512).reshape(1, 512)
    real = peak(model, {"input_ids": ids, "use_cache": True})
    ours = peak_with_cache(traced(model, context=512, batch=1)).nbytes
    assert ours == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize(("name", "phase"), small_models.WORKLOADS)
def test_the_peak_holds_at_least_what_any_kernel_reads_and_writes(name: str, phase: str) -> None:
    trace = traced(small_models.CONFIGS[name](), phase)
    record = trace.unrolled
    found = peak_activations(trace).nbytes
    for kernel in record.kernels:
        touched = {record.tensors[index].storage for index in (*kernel.inputs, *kernel.outputs)}
        made = [record.storages[s] for s in touched if record.storages[s].role == "activation"]
        assert sum(storage.nbytes for storage in made) <= found


def test_no_activation_is_freed_before_it_is_read() -> None:
    record = traced(small_models.qwen3()).unrolled
    alive = {life.storage: life for life in lifetimes(record, ("activation",))}
    for place, kernel in enumerate(record.kernels):
        for index in kernel.inputs:
            life = alive.get(record.tensors[index].storage)
            assert life is None or life.first <= place <= life.last


class Steps(torch.nn.Module):
    """Keeps what each step makes in a list, which is gone or still there when most is needed.

    The last that runs meanwhile is no operator: it only looks at what is there.
    """

    def __init__(self, kept: Callable[[list[torch.Tensor]], object], *, drops: bool) -> None:
        super().__init__()
        self.kept, self.drops = kept, drops
        self.same = torch.nn.Identity()

    def forward(self, x: torch.Tensor, steps: int = 8) -> torch.Tensor:
        made: list[torch.Tensor] = []
        for _ in range(steps):
            x = self.same(x) * 2
            made.append(x + 1)
            self.kept(made)
        last = torch.stack(made)
        wide = torch.cat([last, last])
        if self.drops:
            del made
        return self.same((torch.cat([wide, wide]) * 3).reshape(-1))


def _replace_first(made: list[torch.Tensor]) -> None:
    made[0] = made[-1]


def _keep_three(made: list[torch.Tensor]) -> None:
    del made[:-3]


@pytest.mark.parametrize("drops", [True, False], ids=["gone", "there"])
@pytest.mark.parametrize("kept", [len, _replace_first, list.reverse, _keep_three])
def test_what_a_list_holds_lives_as_long_as_it_does(
    kept: Callable[[list[torch.Tensor]], object],
    drops: bool,
) -> None:
    model, x = Steps(kept, drops=drops), torch.ones(100, 10)
    ours = peak_with_cache(llmsim.trace(model, inputs=x).trace).nbytes
    assert ours == peak(model, {"x": x})


def test_a_loop_of_twice_the_steps_takes_a_record_twice_as_large() -> None:
    """What a list held was once told by every step after."""
    model, x = Steps(len, drops=True), torch.ones(3)

    def size(steps: int) -> int:
        return len(llmsim.trace(model, inputs={"x": x, "steps": steps}).trace.to_json())

    assert size(200) < 2.1 * size(100)


def test_more_layers_need_no_more_activations() -> None:
    few, many = small_models.llama(), small_models.llama()
    many.num_hidden_layers = 6
    assert peak_activations(traced(few)).nbytes == peak_activations(traced(many)).nbytes


def test_replayed_layers_live_as_those_that_ran() -> None:
    replayed = llmsim.trace(small_models.qwen3(), context=7).trace
    ran = llmsim.trace(small_models.qwen3(), context=7, replay=False).trace
    assert peak_activations(replayed) == peak_activations(ran)


# in all, and what fits


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("runtime", ["transformers", "vllm"])
def test_the_parts_of_a_memory_are_its_total(runtime: str, phase: str) -> None:
    """The context is outside what PyTorch's allocator counts, and inside an engine's budget."""
    found = memory(traced(small_models.llama(), phase), runtime=runtimes.find(runtime))
    allocated = found.weights + found.buffers + found.cache + found.activations + found.replaced
    assert found.total == allocated + (found.context if runtime == "vllm" else 0)
    assert found.required == allocated + found.context
    table = memory_table({runtime: found})
    assert table.loc["total", "bytes"] == found.total
    assert table.loc["context", "bytes"] == found.context > 0
    assert not table["bytes"].isna().any()  # sentences are notes, no rows
    assert memory_notes({runtime: found}) == tuple(dict.fromkeys(found.assumptions))


@pytest.mark.parametrize("name", runtimes.entries())
def test_every_allowance_has_a_source(name: str) -> None:
    for runtime in runtimes.entries()[name]:
        assert "@" in runtime.source
        assert 0 < runtime.usable_share <= 1
        assert 0 < runtime.visible_share <= 1
        assert runtime.context(1) < runtime.context(2)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if place % 5 == 0 else pytest.mark.slow)
        for place, case in enumerate(PUBLISHED)
    ],
    ids=lambda case: " ".join(list(case.values())[1:8]),
)
def test_published_cases_fit_or_do_not(case: dict[str, str]) -> None:
    """And are as large as published: weights within 1 %, but for what a runtime pads."""
    sizer = CapacityPlanner(case["model"])
    setup = Setup(
        batch=int(case["batch"]),
        context=int(case["context"]),
        parallel=Parallel(int(case["tp"])),
        weight_dtype=case["weight_dtype"] or None,
    )
    device = accelerators.find(case["hardware"])
    found = sizer.fit(setup, device, case["runtime"], remedies=False)
    assert found is not None
    assert found.fits == (case["fits"] == "yes")
    if case["weights_gib"]:
        # One runtime pads the experts of one model; an older transformers leaves tables whole.
        allowed = 0.05 if case["model"].startswith("openai/") or case["tp"] != "1" else 0.01
        assert found.memory.weights / GIB == pytest.approx(float(case["weights_gib"]), rel=allowed)
    if case["available_kv_gib"] and not case["model"].startswith("openai/"):
        left = found.usable - found.memory.total + found.memory.cache
        assert left / GIB == pytest.approx(
            float(case["available_kv_gib"]), abs=0.2 if case["tp"] == "1" else 1
        )


@pytest.mark.slow
def test_what_makes_it_fit_fits_and_no_more_would() -> None:
    sizer = CapacityPlanner("Qwen/Qwen3-32B")
    device = accelerators.find("H200-SXM-141GB")
    setup = Setup(batch=8, context=32768)
    found = sizer.fit(setup, device, "vllm")
    assert found is not None
    assert found.binds == "cache"
    ways = dict(change for remedy in found.remedies for change in remedy.changes)
    assert ways.keys() == {"tp", "weight_dtype", "batch", "context"}
    for what, value in ways.items():
        change = {"parallel": Parallel(int(value))} if what == "tp" else {what: value}
        changed = Setup(**{"batch": 8, "context": 32768, **change})  # type: ignore[arg-type]
        assert sizer.fit(changed, device, "vllm").fits, what  # type: ignore[union-attr]
    for what in ("batch", "context"):
        more = Setup(**{"batch": 8, "context": 32768, what: int(ways[what]) + 1})
        assert not sizer.fit(more, device, "vllm").fits, what  # type: ignore[union-attr]
    assert sizer.largest_batch(setup, device, "vllm") == ways["batch"]
    row = capacity_table([found]).iloc[0]
    assert (row.fits_with_tp, row.fits_with_batch) == (ways["tp"], ways["batch"])


@pytest.mark.slow
def test_two_changes_are_named_where_none_does_alone() -> None:
    sizer = CapacityPlanner("Qwen/Qwen3-32B")
    device = replace(accelerators.find("L4"), memory_bytes=accelerators.find("T4").memory_bytes)
    found = sizer.fit(Setup(batch=8, context=32768), device, "vllm")
    assert found is not None
    devices, both = found.remedies
    assert [what for what, _ in devices.changes] == ["tp", "pp"]
    assert devices.total <= found.usable
    assert devices.setup.parallel.ranks > both.setup.parallel.ranks
    assert [what for what, _ in both.changes] == ["tp", "weight_dtype"]
    ranks, dtype = (value for _, value in both.changes)
    alone = (
        Setup(batch=8, context=32768, parallel=Parallel(int(ranks))),
        Setup(batch=8, context=32768, weight_dtype=str(dtype)),
    )
    assert not any(sizer.fit(one, device, "vllm", remedies=False).fits for one in alone)  # type: ignore[union-attr]
    assert both.total <= found.usable


@pytest.mark.slow
def test_a_window_and_a_state_reach_further_than_keys_and_values() -> None:
    device = accelerators.find("RTX 4090")
    windowed = CapacityPlanner("mistralai/Mistral-7B-v0.1")
    setup = Setup(batch=1, context=128)
    assert windowed.longest_context(setup, device, "vllm") == windowed.longest


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (
            Setup(batch=1, context=10**6),
            "context 1,000,000 exceeds the model's maximum of 40,960 tokens",
        ),
        (Setup(batch=1, context=128, parallel=Parallel(3)), "tp must be one of 1, 2, 4, 8"),
        (Setup(batch=1, context=128, weight_dtype="int3"), "weight_dtype must be one of int4"),
        (Setup(batch=1, context=128, kv_dtype="x"), "kv_dtype must be one of int8"),
    ],
)
def test_what_cannot_be_is_one_line(setup: Setup, said: str) -> None:
    device = accelerators.find("H100-SXM5-80GB")
    with pytest.raises(InvalidValue) as error:
        CapacityPlanner("Qwen/Qwen3-0.6B").fit(setup, device, "vllm")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_runtime_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(InvalidValue, match="runtime must be one of transformers, vllm"):
        CapacityPlanner("Qwen/Qwen3-0.6B").fit(
            Setup(batch=1, context=128), accelerators.find("H100-SXM5-80GB"), "sglang"
        )


def test_a_batch_beyond_all_memory_does_not_fit_and_says_so() -> None:
    device = accelerators.find("H100-SXM5-80GB")
    found = CapacityPlanner("Qwen/Qwen3-0.6B").fit(
        Setup(batch=2**31 - 1, context=4096), device, "vllm", remedies=False
    )
    assert found is not None
    assert not found.fits
    assert found.memory.cache > 2**50


# how much of a runtime's sampler a model needs, and how large it may become


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit"])
def test_a_model_that_samples_no_tokens_needs_its_own_peak_alone(name: str) -> None:
    trace = traced(small_models.CONFIGS[name]())
    found = memory(trace, runtime=runtimes.find("vllm"))
    assert found.activations == peak_activations(trace).nbytes


@pytest.mark.parametrize("name", ["llama", "t5", "whisper", "mamba"])
def test_a_model_that_generates_needs_the_logits_of_the_sampler(name: str) -> None:
    config = small_models.CONFIGS[name]()
    found = memory(traced(config), runtime=runtimes.find("vllm"))
    assert found.activations == int(9.7 * 1024 * config.vocab_size * 4)


@pytest.mark.parametrize("what", ["largest_batch", "longest_context"])
@pytest.mark.parametrize("runtime", ["vllm", "transformers"])
def test_no_size_is_tried_where_the_weights_alone_do_not_fit(what: str, runtime: str) -> None:
    planner = CapacityPlanner("Qwen/Qwen3-0.6B")
    small = replace(accelerators.find("T4"), name="small", memory_bytes=10**9)
    setup = Setup(batch=2, context=16)
    planner.fit(setup, small, runtime, remedies=False)
    traced: list[str] = []
    with planner.reporting(traced.append, never_cancelled):
        assert getattr(planner, what)(setup, small, runtime) == 0
    assert not traced


def test_an_encoder_reads_its_whole_batch_at_once() -> None:
    """Chunks are of prompts: what has no cache is not read in parts."""
    config = small_models.bert()
    batch = 8192 // 7 + 1
    planner = CapacityPlanner(config)
    found = planner.needed(Setup(batch=batch, context=7), runtimes.find("vllm"))
    assert found.activations == peak_activations(traced(config, batch=batch)).nbytes


@pytest.mark.parametrize("most", [1, 7, 64, 1000])
@pytest.mark.parametrize("first", [1, 5, 64, 2000])
@pytest.mark.parametrize("fits_up_to", [0, 1, 4, 63, 64, 999])
def test_the_largest_size_that_fits_is_found_from_any_start(
    most: int, first: int, fits_up_to: int
) -> None:
    assert _largest(most, first, lambda size: size <= fits_up_to).size == min(most, fits_up_to)


@pytest.mark.parametrize("usable", [0, 999, 10_000, 123_457])
@pytest.mark.parametrize("rounding", [1, 64])
def test_a_search_of_what_grows_by_a_line_begins_beside_its_end(usable: int, rounding: int) -> None:
    def total(size: int) -> int:
        return 700 + -(-37 * size // rounding) * rounding

    tried: list[int] = []

    def is_ok(size: int) -> bool:
        tried.append(size)
        return total(size) <= usable

    found = _largest(10**6, likely_limit(usable, total, (4, 16)), is_ok).size
    assert found == max((n for n in range(1, 4000) if total(n) <= usable), default=0)
    assert len(tried) <= 6


def test_what_needs_no_more_for_more_has_no_likely_limit() -> None:
    assert likely_limit(100, lambda _: 50, (4, 16)) == 16


def test_a_cpu_has_no_context_of_a_driver() -> None:
    cpu, gpu = accelerators.find("EPYC 9654"), accelerators.find("H100")
    assert runtimes.on("transformers", cpu).context(1) == 0
    assert runtimes.on("transformers", gpu) == runtimes.find("transformers", gpu.memory_bytes)
    assert runtimes.on("vllm", None) == runtimes.find("vllm")


def test_a_search_that_may_not_go_on_says_where_it_stopped() -> None:
    def is_ok(size: int) -> bool:
        if size > 16:
            raise WorkLimitReached
        return True

    assert _largest(1000, 1, is_ok) == Limit(16, stopped=True)


@pytest.mark.parametrize("first", [1, 8, 9, 50])
def test_a_search_from_what_fits_stays_above_it(first: int) -> None:
    tried: list[int] = []

    def is_ok(size: int) -> bool:
        tried.append(size)
        return size <= 20

    assert _largest(1000, first, is_ok, known=8) == Limit(20)
    assert min(tried) > 8
    assert _largest(1000, first, lambda _: False, known=8) == Limit(8)
    assert _largest(8, first, is_ok, known=8) == Limit(8)


def packed_images() -> transformers.PretrainedConfig:
    text = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 200,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    return transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        architectures=["Qwen2VLForConditionalGeneration"],
        image_token_id=100,
        video_token_id=101,
        vision_start_token_id=102,
        vision_end_token_id=103,
    )


@pytest.mark.slow
def test_the_largest_batch_of_packed_images_is_found_without_large_batches() -> None:
    """Such a model makes more kernels with each sequence, so a large batch takes long to trace."""
    planner = CapacityPlanner(packed_images())
    device = accelerators.find("T4")
    setup = Setup(batch=1, context=128)
    largest = planner.largest_batch(setup, device, "vllm")
    assert largest is not None
    assert largest > 1000
    assert max(workload.batch for _, workload in planner._traces) <= 256
    assert not planner.notes
    for batch, fits in ((largest, True), (largest + 1, False)):
        found = planner.fit(Setup(batch=batch, context=128), device, "vllm", remedies=False)
        assert found is not None
        assert found.fits is fits


def test_a_search_without_formula_stops_and_the_report_says_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workload_tracer, "formula", lambda *_: None)
    monkeypatch.setattr(capacity_planner, "_MAX_SEARCH_KERNELS", 3000)
    report = llmsim.trace(small_models.llama(), context=16, hardware="T4")
    assert report.costing.fits.largest_batch[0] >= 1
    (said,) = (remark for remark in report.remarks() if "search" in remark)
    assert "larger ones take too long to trace" in said


@pytest.mark.slow
def test_a_long_scan_is_sized_from_short_ones() -> None:
    """A scan that is written in Python makes kernels for each token."""
    planner = CapacityPlanner(small_models.mamba())
    runtime = runtimes.find("transformers")
    found = planner.needed(Setup(batch=2, context=800), runtime)
    assert max(workload.context for _, workload in planner._traces) < 400
    whole = memory(traced(small_models.mamba(), batch=2, context=800), runtime=runtime)
    assert found.cache == whole.cache
    assert found.activations == pytest.approx(whole.activations, rel=1e-3)  # tensors, not blocks
    assert any("batch 2 × context 800" in said for said in found.assumptions)


# what the caching allocator reserves

RESERVED = list(
    csv.DictReader(Path(__file__).parents[1].joinpath("data", "measured_reserved.csv").open())
)


@pytest.mark.parametrize("row", RESERVED, ids=lambda row: f"{row['model']} {row['run']}")
def test_reserved_bytes_that_were_measured_are_in_the_band(row: dict[str, str]) -> None:
    """Where the peak of allocated bytes is not published, the weights are the most of it."""
    weights_, largest, reserved = (
        int(row[name]) for name in ("weights", "largest_weight", "peak_reserved")
    )
    allocated = int(row["peak_allocated"] or weights_)
    assert allocated <= reserved <= most_reserved(allocated, weights_, largest) + 33 * 2**20


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_plain_call_reserves_at_least_what_it_allocates(phase: str) -> None:
    trace = traced(small_models.llama(), phase)
    found = memory(trace, runtime=runtimes.find("transformers"))
    assert found.reserved is not None
    assert found.total < found.reserved.low < found.reserved.high
    assert memory(trace, runtime=runtimes.find("vllm")).reserved is None


def test_a_total_that_exceeds_its_parts_says_why() -> None:
    """Layers wider than the logits: the old keys of one are the most that is alive besides."""
    found = memory(traced(small_models.llama(), "decode", batch=64, context=30))
    keys = 64 * 2 * 30 * 16 * 4
    assert 0 < found.replaced <= keys
    assert f"{found.replaced:,} bytes of old keys" in " ".join(found.assumptions)
