"""Times, memory and capacity through the public interface."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic import LlmsimError
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.simulate.answer import answer
from tests.helpers import small_models


def asked(line: str) -> Any:
    return answer(parse_line(line).request)


def bands_hold(table: pd.DataFrame, low: str, middle: str, high: str) -> None:
    known = table[table[middle].notna()]
    assert (known[low] <= known[middle]).all()
    assert (known[middle] <= known[high]).all()


def test_no_time_is_shown_without_its_unit_and_its_band() -> None:
    report = asked("distilgpt2 --ops --costs --memory --hardware H100,RTX4090")
    timed = [
        table
        for table in report.tables().values()
        if any(str(name).endswith("_s") or str(name).startswith("time") for name in table)
    ]
    assert len(timed) >= 4
    for table in timed:
        names = {str(name) for name in table}
        assert {"time_s", "time_low_s", "time_high_s"} <= names
        bands_hold(table, "time_low_s", "time_s", "time_high_s")
    bands_hold(report.latency, "tokens_per_s_low", "tokens_per_s", "tokens_per_s_high")
    assert any("not modelled" in remark for remark in report.remarks())


def test_a_device_is_told_of_in_both_phases() -> None:
    report = llmsim.trace("distilgpt2", hardware=["H100", "L40S"], context=64)
    rows = report.latency[["device", "runtime", "launch", "phase"]].values.tolist()
    assert rows == [
        [name, *execution, phase]
        for name in ("H100-SXM5-80GB", "L40S")
        for execution in (("transformers", "eager"), ("transformers", "graph"), ("vllm", "graph"))
        for phase in ("prefill", "decode")
    ]


def test_an_encoder_has_no_decode_step_to_time() -> None:
    report = llmsim.trace(small_models.bert(), hardware="H100", context=8)
    assert report.latency["phase"].tolist() == ["prefill"] * 2
    assert report.latency["runtime"].tolist() == ["transformers"] * 2


def test_parts_sum_to_the_pass() -> None:
    costing = llmsim.trace("distilgpt2", hardware="H100", context=64).costing
    whole = costing.passes[0][1].seconds
    for table in (costing.layers, costing.types):
        assert table["time_s"].sum() == pytest.approx(whole)
    sums = costing.times.groupby(["runtime", "launch"], sort=False)["time_s"].sum()
    prefills = [time for trace, time in costing.passes if trace.workload.phase == "prefill"]
    assert sums.tolist() == pytest.approx([time.seconds for time in prefills])


def test_eager_launches_cost_more_than_a_captured_graph() -> None:
    graph = llmsim.trace("distilgpt2", hardware="H100", phase="decode", launch="graph").latency
    eager = llmsim.trace("distilgpt2", hardware="H100", phase="decode", launch="eager").latency
    assert eager["time_s"].iloc[0] > graph["time_s"].iloc[0]


def test_fewer_bits_take_less_memory_and_a_decode_step_less_time() -> None:
    name = "meta-llama/Llama-3.1-8B"
    given = {"hardware": "H100", "phase": "decode", "runtime": "vllm"}
    full = llmsim.trace(name, **given)
    small_ = llmsim.trace(name, **given, weight_dtype="int4")
    assert small_.memory.loc["weights", "bytes"] < full.memory.loc["weights", "bytes"] / 2.5
    assert small_.latency["time_s"].iloc[0] < full.latency["time_s"].iloc[0] / 1.5


def test_stages_take_the_sum_of_their_times() -> None:
    one = llmsim.trace("Qwen/Qwen3-0.6B", hardware="H100", context=512).latency["time_s"].iloc[0]
    two = llmsim.trace("Qwen/Qwen3-0.6B", hardware="H100", context=512, pp=2)
    assert two.latency["time_s"].iloc[0] == pytest.approx(one, rel=0.1)
    assert two.trace.model.parallel.pp == 2


def test_size_says_where_it_fits_what_would_make_it_fit_and_how_fast_it_is() -> None:
    names = ["RTX 4090", "H100", "B200"]
    sizing = llmsim.size("Qwen/Qwen3-32B", context=4096, hardware=names, runtime="vllm")
    table = sizing.table.set_index("device")
    assert table["fits"].tolist() == [False, True, True]
    assert table.loc["RTX 4090", "makes_it_fit"]
    assert table["decode_s"].isna().tolist() == [True, False, False]
    for phase in ("prefill", "decode"):
        bands_hold(table, f"{phase}_low_s", f"{phase}_s", f"{phase}_high_s")
    assert table.loc["B200-SXM", "decode_s"] < table.loc["H100-SXM5-80GB", "decode_s"]


def test_what_makes_it_fit_does() -> None:
    name = "Qwen/Qwen3-32B"
    for found in llmsim.size(name, context=4096, hardware="L40S").table.to_dict("records"):
        assert not found["fits"]
        (then,) = llmsim.size(
            name,
            context=4096,
            hardware="L40S",
            runtime=found["runtime"],
            launch=found["launch"],
            tp=int(found["fits_with_tp"]),
        ).table.to_dict("records")
        assert then["fits"]


def test_two_models_stand_side_by_side() -> None:
    table = asked("distilgpt2 --compare gpt2 --hardware H100").comparison
    assert [*table] == ["unit", "distilgpt2", "gpt2", "ratio", "difference"]
    assert table.loc["parameters", "gpt2"] == 124_439_808
    assert table.loc["decode_s on H100-SXM5-80GB", "ratio"] > 1


def test_csv_writes_times_a_roofline_and_a_timeline(tmp_path: Path) -> None:
    asked(f"distilgpt2 --costs --memory --hardware H100 --csv {tmp_path}")
    names = {file.name for file in tmp_path.iterdir()}
    stem = "distilgpt2.prefill.b1.c128"
    whats = ("latency.csv", "times.csv", "memory.csv", "fits.csv", "roofline.svg")
    assert {f"{stem}.{what}" for what in whats} <= names
    events = json.loads((tmp_path / f"{stem}.timeline.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert spans
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpt2 --hardware H1000", "H1000"),
        ("gpt2 --hardware T4 --dtype bfloat16 --costs", "T4"),
        ("gpt2 --weight-dtype int3", "int3"),
        ("gpt2 --kv-dtype int4", "int4"),
        ("gpt2 --launch slow", "slow"),
        ("gpt2 --tp 2", "plan"),
        ("Qwen/Qwen3-0.6B --tp 3", "3"),
        ("Qwen/Qwen3-0.6B --tp 0", "at least 1"),
        ("Qwen/Qwen3-0.6B --memory --context 1000000", "1,000,000"),
        ("Qwen/Qwen3-0.6B --hardware H100 --batch 99999999999", "99999999999"),
        ("gpt2 --compare no/such-model", "no/such-model"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(line: str, said: str) -> None:
    with pytest.raises(LlmsimError) as caught:
        repr(asked(line))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_with_inputs_of_its_own_is_timed_too() -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16), torch.nn.GELU())
    given = torch.zeros(4, 64, dtype=torch.bfloat16)
    report = llmsim.trace(net, inputs=given, hardware="H100")
    assert report.latency["time_s"].iloc[0] > 0
    assert report.memory.loc["weights", "bytes"] == 2 * (64 * 64 + 64)


def test_a_model_on_several_devices_says_what_each_holds_and_hands_on() -> None:
    report = asked("Qwen/Qwen3-0.6B --memory --tp 2 --pp 2 --context 16")
    tables = report.tables()
    assert len(tables["ranks"]) == 2
    assert set(tables["collectives"]["collective"]) >= {"all_reduce", "send"}
    shards = tables["shards"].dropna(subset=["bytes_per_rank"])
    split = shards[shards["style"].notna()]
    assert (split["bytes_per_rank"] <= split["bytes"]).all()
    assert shards["bytes_per_rank"].sum() == tables["ranks"].loc["stage 0", "weights"]
    assert "Communication per pass" in repr(report)
