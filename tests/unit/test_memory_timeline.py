"""The memory of a training step over time: what grows where, as a table and as a picture."""

import re
from dataclasses import replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.memory_timeline import Span, points, spans
from llmsim_magic.analyses.allocations.step_allocations import step_allocations
from llmsim_magic.analyses.allocations.step_events import STAGE_OF
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views.charts.memory_chart import memory_chart
from llmsim_magic.views.plots.memory_plot import COLOURS, memory_plot, timeline_data

LAYERS, BATCH, CONTEXT, WIDTH, VOCABULARY = 6, 4, 128, 256, 4096
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>&amp;$\\frac{1}{0}$\x1b[0m\nname'


@pytest.fixture(scope="module")
def report() -> Report:
    config: Any = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=640, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip
    found = llmsim.trace(config, phase="train", batch=BATCH, context=CONTEXT, dtype="bfloat16")
    return replace(found, views=(VIEWS["memory"],))


@pytest.fixture(scope="module")
def trace(report: Report) -> Trace:
    return report.trace


@pytest.fixture(scope="module")
def found(trace: Trace) -> tuple[Span, ...]:
    return spans(trace)


def test_each_span_begins_with_what_the_one_before_left(found: tuple[Span, ...]) -> None:
    assert all(one.after == other.before for one, other in pairwise(found))
    assert list(dict.fromkeys(span.stage for span in found)) == ["forward", "backward", "optimizer"]


def test_layers_are_one_span_that_saves_in_forward_and_frees_in_backward(
    found: tuple[Span, ...],
) -> None:
    forward, backward = (span for span in found if span.layers)
    assert (forward.path, forward.layers) == (f"model.layers.0-{LAYERS - 1}", LAYERS)
    assert (backward.path, backward.layers) == (forward.path, LAYERS)
    grown = forward.after.saved - forward.before.saved
    hidden = BATCH * CONTEXT * WIDTH * 2  # bytes of the hidden states, of which a layer saves some
    assert grown > LAYERS * 4 * hidden
    assert backward.before.saved - backward.after.saved == pytest.approx(grown, rel=0.05)


def test_gradients_are_those_of_every_parameter_after_backward(
    trace: Trace, found: tuple[Span, ...]
) -> None:
    exact = sum(each.nbytes for each in trace.parameters if each.trainable and not each.tied_to)
    assert found[0].before.gradients == 0
    assert exact <= found[-1].before.gradients <= 1.05 * exact


def test_points_are_few_and_the_peak_is_one_of_them(trace: Trace) -> None:
    steps = step_allocations(trace)
    drawn = points(steps.moments, most=40)
    assert len(drawn) <= 3 * 12 + 40
    assert steps.steady.peak in drawn
    assert {STAGE_OF[moment.part] for moment in drawn} == {"forward", "backward", "optimizer"}
    assert [moment.kernel for moment in drawn] == sorted({moment.kernel for moment in drawn})


def test_the_table_has_the_parts_of_each_peak(report: Report) -> None:
    table = report.timeline
    parts = ["parameters", "gradients", "optimizer", "saved", "temporaries"]
    columns = [f"{name}_bytes" for name in parts]
    assert (table[columns].sum(axis=1) == table["peak_bytes"]).all()
    assert table["peak_bytes"].max() == report.memory.loc["peak", "bytes"]
    assert set(report.tables()) == {"memory", "timeline"}


def test_only_a_training_step_has_a_timeline() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=4, vocab_size=128)
    with pytest.raises(InvalidValue, match="timeline is not available"):
        _ = llmsim.trace(config, context=8).timeline


def test_the_plot_marks_passes_and_the_peak(trace: Trace, report: Report, tmp_path: Path) -> None:
    plot = report.costing.memory_plot
    words = {"".join(t.itertext()) for t in ElementTree.fromstring(plot.svg).iter(f"{SVG}text")}
    assert {"forward", "backward", "optimizer", "saved for backward"} <= words
    assert timeline_data(trace).peak_text in words
    assert plot.save(tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert any(name.endswith(".memory.svg") for name in report.files())


def test_a_hostile_name_is_drawn_as_text(trace: Trace) -> None:
    hostile = replace(trace, model=replace(trace.model, name=HOSTILE))
    assert "<script" not in memory_plot(hostile).svg


def test_a_category_has_the_same_colour_in_the_timeline_and_in_the_bars(report: Report) -> None:
    style = resources.files("llmsim_magic.views.pages").joinpath("page.css").read_text("utf-8")
    light = dict(re.findall(r"--c([0-9]): (#[0-9a-f]{6});", style)[:8])
    memories = report.costing.memories
    (bar, *_) = memory_chart(memories).bars
    names = [piece.name for piece in bar.pieces][: len(COLOURS)]
    assert names == list(COLOURS)
    assert [light[str(place)] for place in range(len(names))] == list(COLOURS.values())
