"""Notes are sentences beside the tables, each once; never rows or values of a table."""

import pytest
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
