"""Notes are sentences beside the tables, each once; never rows or values of a table."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llmsim_magic as llmsim
from llmsim_magic.views.notes import memory_notes, notes
from tests.helpers import small_models


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("model", "layers"),
    [("mistralai/Mixtral-8x7B-v0.1", 32), ("deepseek-ai/DeepSeek-V3", 58)],
)
def test_balanced_routing_is_one_sentence_with_its_layers(
    model: str, layers: int, phase: str
) -> None:
    """DeepSeek-V3's first 3 of 61 layers are dense, and its routers choose three times each."""
    report = llmsim.trace(model, phase=phase, context=8)
    (said,) = (note for note in report.notes if "balanced" in note)
    assert said == f"assumes balanced expert routing ({layers} layers)"


def test_a_choice_without_experts_is_no_routing() -> None:
    class Picks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x.sum(-1).topk(1).indices]

    trace = llmsim.trace(nn.Sequential(Picks(), Picks()), inputs=Tensor(4, 4)).trace
    (said,) = (note for note in notes(trace) if "balanced" in note)
    assert "experts" not in said.replace("expert routing", "")
    assert said.endswith("assumed to be balanced (in 2 modules)")


def test_every_table_of_a_mixture_has_quantities_alone() -> None:
    report = llmsim.trace("mistralai/Mixtral-8x7B-v0.1", context=8, runtime="all")
    sentences = set(report.notes)
    for table in (report.summary, report.memory):
        assert not any(str(name).startswith(("note.", "assumed.")) for name in table.index)
    assert not sentences & set(map(str, report.summary["value"]))
    assert not report.memory["bytes"].isna().any()
    assert len(sentences) == len(report.notes)


def test_what_holds_under_every_runtime_is_said_once() -> None:
    report = llmsim.trace(small_models.llama(), context=8, runtime="all")
    said = memory_notes(report.costing.memories)
    (weights,) = (note for note in said if note.startswith("weights:"))
    assert weights == "weights: default (float32)"
    assert sum(note.startswith("vLLM: ") for note in said) > 0
    assert sum(note.startswith("transformers: ") for note in said) > 0


def test_notes_of_memory_are_beside_the_memory_that_is_shown() -> None:
    report = llmsim.trace(small_models.llama(), context=8)
    assert not any("peak activations" in note for note in report.remarks())
    assert any("peak activations" in note for note in report.notes)


def scaling_notes(**options: Any) -> list[str]:
    given = {"phase": "train", "batch": 2, "context": 8} | options
    found = notes(llmsim.trace(small_models.llama(), **given).trace)
    return [note for note in found if "loss scaling" in note]


def test_a_step_in_float16_says_that_it_needs_loss_scaling() -> None:
    (note,) = scaling_notes(dtype="float16")
    assert "GradScaler refuses those of weights in float16" in note
    assert "precision amp" in note
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    parameter.grad = torch.ones_like(parameter)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # begins to scale
    with pytest.raises(ValueError, match="FP16 gradients"):
        scaler.unscale_(torch.optim.SGD([parameter]))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"precision": "fp32"},
        {"precision": "amp"},
        {"dtype": "float16", "phase": "prefill"},
    ],
    ids=str,
)
def test_other_passes_need_none(options: dict[str, Any]) -> None:
    assert not scaling_notes(**options)


def test_a_region_in_float16_needs_a_scaler() -> None:
    class Part(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", dtype=torch.float16):
                return super().forward(x)

    report = llmsim.trace(
        Part(8, 8), inputs=torch.ones(4, 8), phase="train", loss=lambda out: out.float().sum()
    )
    assert [note for note in notes(report.trace) if "loss scaling" in note] == [
        "gradients in float16 underflow without loss scaling (torch.amp.GradScaler), which the "
        "step leaves out"
    ]
