"""Sweeps of training steps: peaks, times, executors, cancellation and steps that do not fit."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import totals
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import Cancelled
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
