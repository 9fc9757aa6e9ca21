"""Training steps equal those of an H100, and how they are scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.silicon_training import of_training, runs, step_figures, table
from llmsim_magic.analyses.allocations.step_allocations import Alive, Moment, StageBytes, StepBytes

BERT: dict[str, Any] = {  # as torch 2.11 and transformers 5.17 allocated it
    "kind": "train",
    "model": "bert-base-uncased",
    "batch": 16,
    "context": 512,
    "checkpoint": False,
    "dtype": "torch.bfloat16",
    "amp": False,
    "lora": 0,
    "optimizer": "AdamW",
    "over": {},
    "device": "NVIDIA H100 80GB HBM3",
    "start": 69206016,
    "peak_reserved": 5494538240,
    "after_forward_0": 3430941184,
    "peak_forward_0": 3931013632,
    "after_backward_0": 529006592,
    "peak_backward_0": 4431086080,
    "after_step_0": 989084672,
    "peak_step_0": 4431086080,
    "after_forward_1": 3891019264,
    "peak_forward_1": 4391091712,
    "after_backward_1": 983930880,
    "peak_backward_1": 4891164160,
    "after_step_1": 983930880,
    "peak_step_1": 4891164160,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("silicon")
    rows = [BERT, BERT | {"oom": "no memory"}, BERT | {"over": {"hidden_size": 8}}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    made.joinpath("train.jsonl").write_text(text, "utf-8")
    return made


def test_every_figure_of_a_run_is_within_one_per_cent(folder: Path) -> None:
    """After each pass and at its peak, in the first step and the second."""
    run, _ = runs(folder)
    assert len(run.figures) == 12
    assert {each.figure: each.error for each in run.figures if abs(each.error) > 0.01} == {}


def test_what_is_reserved_is_in_its_band(folder: Path) -> None:
    scored = list(of_training(runs(folder)))
    assert [each.scored for each in scored] == [*["train_memory"] * 12, "train_reserved"]
    assert {each.device for each in scored} == {"H100-SXM5-80GB"}
    assert scored[-1].low <= scored[-1].measured <= scored[-1].high


def test_a_run_that_cannot_be_predicted_is_named_with_the_reason(folder: Path) -> None:
    lines = list(table(runs(folder)))
    assert lines[2].startswith("| bert-base-uncased, 16 × 512, bfloat16 | ")
    assert lines[-1].endswith("8: changes of the config are not read: hidden_size")


def test_peaks_are_those_since_the_step_began() -> None:
    stages = {
        "forward": StageBytes(7, 5), "backward": StageBytes(9, 3), "optimizer": StageBytes(4, 2),
    }  # fmt: skip
    alive = Alive(1, 1, 1, 1, 1)
    moment = Moment(0, None, "forward", alive, alive)
    assert step_figures(StepBytes(stages, moment, 0), 1) == {  # type: ignore[arg-type]
        "peak_forward_1": 7,
        "after_forward_1": 5,
        "peak_backward_1": 9,
        "after_backward_1": 3,
        "peak_step_1": 9,
        "after_step_1": 2,
    }
