"""Sweeps of training steps: peaks, times, executors, cancellation and steps that do not fit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import Cancelled, InvalidValue, LlmsimError
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.answer import answer
from llmsim_magic.views.tables.sweeps import totals_table
from tests.helpers import small_models


def test_totals_have_the_peak_of_each_step() -> None:
    sweep = llmsim.sweep(small_models.qwen3(), phase="train", batch=[1, 4], context=[8, 16])
    rows = sweep.totals
    assert rows["phase"].tolist() == ["train"] * 4
    last = llmsim.trace(small_models.qwen3(), phase="train", batch=4, context=16)
    assert rows["peak_bytes"].tolist()[-1] == last.memory.loc["peak", "bytes"]
    assert "peak" in repr(sweep)


@pytest.mark.parametrize("phase", ["train", "prefill"])
def test_totals_have_times_on_a_device(phase: str) -> None:
    """Those of a report of the same workload."""
    sizes: dict[str, Any] = {"phase": phase, "hardware": "H100", "launch": "eager"}
    sweep = llmsim.sweep(small_models.qwen3(), batch=[1, 4], context=[8], **sizes)
    alone = llmsim.trace(small_models.qwen3(), batch=4, context=8, **sizes).latency
    assert (
        "time_s" not in llmsim.sweep(small_models.qwen3(), batch=1, context=8, phase=phase).totals
    )
    last = sweep.totals.iloc[-1]
    row = alone[alone["runtime"] == last["runtime"]].iloc[0]
    for name in ("runtime", "launch", "time_s", "time_low_s", "time_high_s", "tokens_per_s"):
        assert last[name] == row[name]
    assert "90 % interval" in repr(sweep)
    line = f"gpt2 --phase {phase} --batch 1,4 --context 8 --multi-config --hardware H100"
    request = parse_line(f"{line} --launch eager").request
    report = answer(replace(request, model=small_models.qwen3()), with_slow=False)
    assert report.tables()["workloads"]["time_s"].tolist() == sweep.totals["time_s"].tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware": "all"}, "one device"),
        ({"hardware": "H10O"}, "H100"),
        ({"launch": "eager"}, "no effect without hardware"),
        ({"hardware": "T4", "dtype": "bfloat16"}, "T4"),
    ],
)
def test_a_device_that_cannot_be_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmsimError) as error:
        llmsim.sweep(small_models.qwen3(), phase="train", batch=1, context=8, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_inference_has_no_peak_of_a_step() -> None:
    sweep = llmsim.sweep(small_models.qwen3(), phase="prefill", batch=[1], context=[8])
    assert "peak_bytes" not in sweep.totals


def test_an_executor_gives_the_same_totals() -> None:
    sizes = {"phase": "train", "batch": [1, 2], "context": [8]}
    with ThreadPoolExecutor(2) as executor:
        spread = llmsim.sweep(small_models.qwen3(), **sizes, executor=executor)  # type: ignore[arg-type]
    assert spread.totals.equals(llmsim.sweep(small_models.qwen3(), **sizes).totals)  # type: ignore[arg-type]


def test_a_step_that_fails_has_no_peak() -> None:
    done, failed = Workload("train", 1, 8), Workload("train", 2, 8)
    sums = totals(llmsim.trace(small_models.gpt2(), phase="train", context=8).trace)
    table = totals_table({done: sums}, ((failed, "it cannot run"),), {done: 5})
    assert table["peak_bytes"].tolist() == [5, pd.NA]
    assert table["error"][1] == "it cannot run"


def test_a_cancelled_sweep_keeps_the_steps_that_are_done() -> None:
    done: list[str] = []
    sweep = llmsim.sweep(
        small_models.llama(),
        phase="train",
        batch=[1, 2, 3],
        context=[8],
        progress=done.append,
        cancelled=lambda: any("workload 2 of 3" in message for message in done),
    )
    assert 0 < len(sweep.traces) < 3
    assert sweep.undone == 3 - len(sweep.traces)
    with pytest.raises(Cancelled):
        llmsim.sweep(small_models.llama(), phase="train", cancelled=lambda: True)


@pytest.mark.slow
def test_a_step_larger_than_the_device_is_no_failure() -> None:
    line = "gpt2 --phase train --multi-config --batch 1,512 --context 128 --hardware L4"
    report = answer(parse_line(line).request)
    assert report.sweep is not None
    assert not report.sweep.failures
    peaks = report.sweep.totals["peak_bytes"]
    assert peaks[0] < 24e9 < peaks[1]
    fits = report.latency.set_index(["batch", "launch"])["fits"]
    assert fits[1, "eager"]
    assert not fits[512, "eager"]


@pytest.mark.parametrize("hardware", [["H100", "L4"], "all"])
def test_a_sweep_takes_one_device(hardware: Any) -> None:
    with pytest.raises(InvalidValue, match="hardware must be one device for a sweep"):
        llmsim.sweep("gpt2", batch=1, context=4, hardware=hardware)
