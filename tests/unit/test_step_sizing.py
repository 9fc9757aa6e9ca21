"""`size` of a training step: what fits, the largest step on each device, and its time."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import Cancelled, InvalidValue
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.hardware import capacity_planner
from llmsim_magic.simulate.hardware.size import Sizing
from llmsim_magic.simulate.request import Deployment
from llmsim_magic.views.tables.step_alternatives import (
    StepOnDevice,
    StepSize,
    StepTime,
    step_sizing_table,
)
from tests.helpers import small_models
from tests.helpers.training_models import device_of, trained_decoder

STEP: dict[str, Any] = {"phase": "train", "batch": 10, "context": 64}


@pytest.fixture(scope="module")
def sizing() -> Sizing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity_planner, "MAX_BATCH", 8)  # which a test needs not search
        return llmsim.size(small_models.qwen3(), phase="train", batch=4, context=8, hardware="H100")


def test_a_row_has_bytes_sizes_and_times(sizing: Sizing) -> None:
    (row,) = sizing.table.to_dict("records")
    assert row["fits"]
    assert row["peak_bytes"] < row["total_bytes"] < row["usable_bytes"]
    assert row["launch"] == "eager"
    assert row["longest_context"] == 32  # positions of the model
    assert row["train_low_s"] < row["train_s"] < row["train_high_s"]
    assert row["train_tokens_per_s"] == pytest.approx(4 * 8 / row["train_s"])
    assert 0 < row["train_mfu"] < 1


def test_it_is_what_a_report_says(sizing: Sizing) -> None:
    (row,) = sizing.table.to_dict("records")
    traced = llmsim.trace(small_models.qwen3(), phase="train", batch=4, context=8)
    deployment = Deployment(hardware=("H100",), launch="eager")
    report = replace(traced, deployment=deployment)
    assert row["peak_bytes"] == report.memory.loc["peak", "bytes"]
    assert row["train_s"] == report.latency["time_s"][0]
    assert row["train_mfu"] == report.latency["mfu"][0]


def test_it_displays_itself(sizing: Sizing) -> None:
    assert "train, batch 4 × context 8, optimizer adamw" in sizing.title
    assert "1 of 1 devices fit it" in repr(sizing)
    assert "fastest training step" in repr(sizing)
    assert "text/html" in sizing._repr_mimebundle_()


def test_the_sizes_are_on_a_screen_of_80_columns_and_what_is_missing_has_a_reason() -> None:
    step, ours = _row(fits=False), {"largest_micro_batch": 0, "longest_context": 585}
    sizes = [
        StepSize(step=replace(step, device="A" * 14), **ours, sharded=(8, 3)),
        StepSize(step=replace(step, device="B" * 14), **ours, sharded=None),
        StepSize(step=_row(fits=True), largest_micro_batch=19, longest_context=4927, sharded=None),
    ]
    for few in (sizes, sizes[:1]):
        text = repr(Sizing("a step", step_sizing_table(few), ()))
        heads = " ".join(text.split())
        assert "585" in text
        assert " 8 3" in heads  # devices with ZeRO, and its stage
    reasons = [list(size.missing(64)) for size in sizes]
    assert reasons[0] == ["no time, as the step does not fit"]
    assert reasons[1][0] == "no devices with ZeRO, as 64 do not hold the step under stage 3 either"
    assert reasons[2] == ["no devices with ZeRO, as one device holds the step"]
    assert "cannot be sharded" in next(sizes[1].missing(None))


def _row(*, fits: bool) -> StepOnDevice:
    return StepOnDevice(
        device="H100-SXM5-80GB",
        runtime="transformers",
        launch="eager",
        devices=1,
        tokens=32,
        allocated=80 * 10**9,
        required=88 * 10**9,
        usable=(89 if fits else 85) * 10**9,
        time=StepTime(seconds=0.1, low=0.09, high=0.12, mfu=0.5, binds=None) if fits else None,
    )


@pytest.mark.parametrize("name", ["H100", "T4"])
def test_a_note_says_why_each_figure_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity_planner, "MAX_BATCH", 8)
    step: dict[str, Any] = {"phase": "train", "batch": 1, "context": 8, "dtype": "bfloat16"}
    found = llmsim.size(small_models.qwen3(), hardware=name, **step)
    (row,) = found.table.to_dict("records")
    own = [note for note in found.notes if note.startswith(f"{row['device']}: no ")]
    own += [note for note in found.notes if note.startswith(f"no time on {row['device']}: ")]
    missing = {"devices_with_zero": "no devices with ZeRO", "train_s": "no time"}
    for column, start in missing.items():
        said = [note for note in own if start in note]
        assert len(said) == int(pd.isna(row[column]))


@pytest.mark.slow
def test_a_step_that_does_not_fit_has_no_time_and_the_sizes_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = runtimes.on("transformers", accelerators.find("L4"))
    needed = {
        batch: memory(
            llmsim.trace(trained_decoder(), **(STEP | {"batch": batch})).trace, runtime=own
        ).required
        for batch in range(1, 13)
    }
    limit = needed[STEP["batch"]] - 2**20
    device = replace(device_of(limit), name="L4")
    known = accelerators.find
    monkeypatch.setattr(accelerators, "find", lambda name: device if name == "L4" else known(name))
    table = llmsim.size(trained_decoder(), **STEP, hardware=["L4", "H100"]).table
    small, large = table.to_dict("records")
    assert not small["fits"]
    assert small["largest_micro_batch"] == max(n for n, each in needed.items() if each <= limit)
    assert small["longest_context"] < 64
    assert pd.isna(small["train_s"])
    assert large["fits"]
    assert large["largest_micro_batch"] > 100
    assert large["longest_context"] == 256
    micro = llmsim.size(trained_decoder(), **STEP, accumulate=2, hardware="L4").table
    assert 0 < micro["largest_micro_batch"][0] < 12


@pytest.mark.slow
def test_a_search_is_cancelled_between_devices() -> None:
    calls: list[str] = []
    with pytest.raises(Cancelled, match=r"cancelled after [12] devices"):
        llmsim.size(
            small_models.qwen3(),
            phase="train",
            batch=1,
            context=8,
            hardware=["H100", "L4", "T4"],
            cancelled=lambda: any("device 2" in message for message in calls),
            progress=calls.append,
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phase": "prefill"}, "phase must be one of both, train, not 'prefill'"),
        ({"checkpointing": True}, "checkpointing has no effect without phase train"),
        ({"phase": "train", "batch": 3, "accumulate": 2}, "cannot be divided into 2"),
        ({"phase": "train", "weight_dtype": "int4"}, "weight_dtype int4 has no effect"),
        ({"phase": "train", "context": 8, "hardware": "EPYC 9654"}, "on a CPU are not priced"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValue) as error:
        llmsim.size(small_models.qwen3(), **{"hardware": "H100", **options})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_all_devices_share_the_traces_of_a_step() -> None:
    messages: list[str] = []
    report = answer(
        parse_line("gpt2 --phase train --hardware all --batch 8 --context 256").request,
        messages.append,
    )
    table = report.sizing.table
    assert len(table) > 40
    assert sum(message.startswith("tracing") for message in messages) < 3 * len(table)
    same = table.groupby("usable_bytes")["largest_micro_batch"].nunique()
    assert (same == 1).all()
