"""Time of a training step: passes sum to it, micro-batches repeat, MFU is as it is defined."""

from functools import cache
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.model_flops import model_flops, model_flops_utilization
from llmsim_magic.analyses.torch_time.step_time import seconds_by_part
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.tables.column_meanings import missing
from tests.helpers.small_models import CONFIGS

H100 = accelerators.find("H100-SXM5-80GB")
LAUNCHES = ("eager", "graph")
each_launch = pytest.mark.parametrize("launch", LAUNCHES)
PASSES = ["forward_s", "recompute_s", "backward_s", "optimizer_s"]


@cache
def stepped(batch: int = 2, context: int = 32, precision: str = "bf16", **options: Any) -> Report:
    sizes = {"batch": batch, "context": context}
    return llmsim.trace(
        CONFIGS["llama"](), phase="train", hardware="H100", precision=precision, **sizes, **options
    )


def parts(launch: str, **options: Any) -> dict[str, float]:
    trace = stepped(**options).trace
    return seconds_by_part(trace, transformers_time(trace, H100, launch))


@each_launch
def test_the_passes_of_a_step_sum_to_it(launch: str) -> None:
    trace = stepped(checkpointing=True).trace
    time = transformers_time(trace, H100, launch)
    found = seconds_by_part(trace, time)
    assert sorted(found) == ["backward", "forward", "optimizer", "recompute"]
    assert sum(found.values()) == pytest.approx(time.seconds)
    assert time.low < time.seconds < time.high


@each_launch
def test_checkpointing_runs_the_layers_again_and_costs_time(launch: str) -> None:
    plain, again = parts(launch), parts(launch, checkpointing=True)
    assert "recompute" not in plain
    assert 0 < again["recompute"] < again["forward"] * 1.01
    assert sum(again.values()) > sum(plain.values())


@each_launch
def test_a_step_of_more_sequences_takes_no_less(launch: str) -> None:
    times = [sum(parts(launch, batch=batch, context=1024).values()) for batch in (1, 4, 16)]
    assert times == sorted(times)
    assert times[-1] > times[0]


@each_launch
def test_every_pass_but_the_optimizer_runs_for_each_micro_batch(launch: str) -> None:
    one, four = parts(launch), parts(launch, batch=8, accumulate=4)
    assert four["forward"] == pytest.approx(4 * one["forward"])
    assert four["optimizer"] == pytest.approx(one["optimizer"], rel=0.05)
    # The last micro-batch adds its gradients to those of the others.
    assert four["backward"] > 4 * one["backward"]


def test_the_tokens_of_a_step_are_those_of_all_its_micro_batches() -> None:
    row = stepped(batch=8, accumulate=4).latency.iloc[0]
    assert row.tokens_per_s * row.time_s == pytest.approx(8 * 32)


@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"batch": 8, "accumulate": 4}])
def test_the_latency_table_has_the_passes_and_an_mfu_below_one(options: dict[str, Any]) -> None:
    table = stepped(**options).latency
    assert list(table.launch) == ["eager", "graph"]
    assert table[PASSES].sum(axis=1).tolist() == pytest.approx(table.time_s.tolist())
    assert table.recompute_s.isna().all() == (not options.get("checkpointing", False))
    assert ((table.mfu > 0) & (table.mfu < 1)).all()


def test_the_tables_of_costs_and_layers_split_their_time_by_pass() -> None:
    report = stepped(checkpointing=True)
    step_s = report.latency.time_s.iloc[0]
    for table in (report.costs, report.layers):
        assert table[PASSES].sum().sum() == pytest.approx(step_s)
        assert table[PASSES].sum(axis=1).tolist() == pytest.approx(table.time_s.fillna(0).tolist())
    assert set(report.times["pass"]) == {"forward", "recompute", "backward", "optimizer"}


@pytest.mark.parametrize("name", ["latency", "costs", "layers", "times"])
def test_every_column_of_a_step_has_a_meaning(name: str) -> None:
    table = getattr(stepped(checkpointing=True), name)
    assert missing(name, table.columns) == []


def test_inference_has_no_columns_of_training() -> None:
    report = llmsim.trace(CONFIGS["llama"](), context=8, hardware="H100")
    for table in (report.latency, report.costs, report.layers, report.times):
        assert not {*PASSES, "mfu", "pass"} & set(table.columns)


def test_model_flops_are_those_that_torch_counts_over_forward_and_backward() -> None:
    report = stepped(precision="fp32")
    config = CONFIGS["llama"]()
    config._attn_implementation = "eager"  # whose products the counter sees on any device
    model = AutoModelForCausalLM.from_config(config).train()
    ids = model.dummy_inputs["input_ids"].new_zeros((2, 32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # The fused derivative multiplies queries and keys once more: 5 products instead of 4.
    text = config.get_text_config()
    heads, width = text.num_attention_heads, text.head_dim
    again = 2 * 2 * heads * 32 * 32 * width * text.num_hidden_layers
    assert model_flops(report.trace) == counter.get_total_flops() + again


def test_model_flops_are_without_what_is_computed_again_and_of_all_micro_batches() -> None:
    plain = model_flops(stepped().trace)
    assert model_flops(stepped(checkpointing=True).trace) == plain
    assert model_flops(stepped(batch=8, accumulate=4).trace) == 4 * plain


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_mfu_is_over_the_dense_peak_in_the_dtype_of_the_products(
    precision: str, dtype: str
) -> None:
    trace = stepped(precision=precision).trace
    expected = model_flops(trace) / (H100.peak_flops[dtype] * 0.25)
    assert model_flops_utilization(trace, H100, 0.25) == pytest.approx(expected)
    assert model_flops_utilization(trace, H100, 0.0) is None


def test_the_headline_is_of_a_step_that_the_host_starts() -> None:
    text = " ".join(stepped().text(200).split())  # lines are wrapped
    assert "a step, limited by" in text
    assert "% MFU" in text
    assert "transformers, eager on H100-SXM5-80GB" in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"hardware": "H100", "runtime": "vllm"}, "serves models and does not train them"),
        ({"hardware": "local-cpu"}, "training step on a CPU"),
    ],
)
def test_what_does_not_train_is_refused_in_one_line(options: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidValue, match=why) as failure:
        _ = llmsim.trace(CONFIGS["llama"](), phase="train", context=8, **options).latency
    assert "\n" not in str(failure.value)
