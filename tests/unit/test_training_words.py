"""The sentences of a training step: what a row, a figure or a note is called."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.allocations.step_allocations import step_allocations
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.report import Report
from llmsim_magic.views import headlines
from llmsim_magic.views.charts.chart import Card
from tests.helpers import small_models

PARTS = ("parameters", "gradients", "optimizer", "saved", "temporaries")


def _step(name: str = "gpt2", **options: Any) -> Report:
    options = {"context": 8, "batch": 2} | options
    return llmsim.trace(small_models.CONFIGS[name](), phase="train", **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {}),
        ("gpt2", {"packed": True}),
        ("gpt2", {"accumulate": 2, "checkpointing": True}),
        ("llama", {"tp": 2}),
        ("llama", {"dp": 2, "zero": 3}),
        ("whisper", {}),
        ("t5", {"lora": "r=2"}),
    ],
)
def test_rows_of_the_timeline_are_operators_and_layers(name: str, options: dict[str, Any]) -> None:
    report = _step(name, **options)
    table = report.timeline
    rows = table[table["pass"] != "optimizer"]
    assert not set(rows["path"]) & {"", "forward", "backward"}
    modules = {module.path for module in report.trace.modules}
    functions = {operator.op for operator in report.trace.operators}
    for path in rows["path"]:
        module, _, function = path.rpartition(":")
        is_layers = re.fullmatch(r"(.+\.)?[\d, -]+", path) is not None
        assert is_layers or path in modules or path in functions or module in modules, path
        assert not function or is_layers or function in functions | modules
    peak = report.memory.loc["peak", "bytes"]
    assert table["peak_bytes"].max() == peak
    first, *_, last = step_allocations(report.trace).moments
    assert table["change_bytes"].sum() == last.left.total - first.alive.total


def _memory_facts(report: Report) -> list[Any]:
    (summary,) = report.content().parts
    card = next(body for body in (each.body for each in summary.sections) if isinstance(body, Card))
    return next([*facts] for title, facts in card.groups if title == "Memory under transformers")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_parts_of_the_card_are_shares_of_the_peak(optimizer: str) -> None:
    report = _step("llama", optimizer=optimizer)
    parts = report.memory["bytes"][list(PARTS)]
    _, *facts = _memory_facts(report)
    assert [fact.label for fact in facts] == [name for name in PARTS if parts[name]]
    shares = [re.fullmatch(r"([\d.]+) % of the peak", fact.meaning) for fact in facts]
    assert sum(float(share[1]) for share in shares if share) == pytest.approx(100, abs=0.3)
    for name in PARTS:
        meaning = str(report.memory.loc[name, "means"])
        assert meaning.startswith("none at the peak") is not bool(parts[name])


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "is_said"), [(None, False), ("all", True)])
def test_an_engine_is_named_only_to_who_asks_for_it(runtime: str | None, is_said: bool) -> None:
    report = _step("llama", hardware="H100", runtime=runtime)
    assert ("vLLM" in report.text() + report.page()) is is_said
    sizing = llmsim.size(
        small_models.llama(), phase="train", context=8, hardware="H100", runtime=runtime
    )
    assert any("vLLM" in note for note in sizing.notes) is is_said


def test_a_picture_that_a_terminal_leaves_out_has_a_name() -> None:
    line = "gpt2 --phase train --context 4 --memory --topological"
    said = " ".join(answer(parse(line.split()).request).text(width=200).split())
    before = re.findall(r"([\w ]+) \(a picture\)", said)
    assert "Memory over a steady step" in [name.strip() for name in before]
    assert all(name.strip() for name in before)


def _row(change: str, cost: float, *, fits: bool) -> Any:
    return SimpleNamespace(
        device="H100", change=change, cost=cost, fits=fits, is_as_asked=not change, refusal=None,
        allocated=12 * 10**9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("adamw_fused", 1.0, True), ("", 1.25, True)],
            "adamw_fused is fastest on H100: ×1.25 tokens/s per device",
        ),
        (
            [("adamw_fused", 1.0, True), ("", 1.001, True)],
            "as asked fits H100, and no change tried is faster",
        ),
        (
            [("", 1.0, True), ("LoRA r=16", 2.0, True)],
            "as asked fits H100, and no change tried is faster",
        ),
        (
            [("checkpointing", 2.0, True), ("", 1.0, False)],
            "checkpointing is the fastest change that makes it fit H100: peak 12.0 GB",
        ),
        (
            [("checkpointing", 2.0, False), ("", 1.0, False)],
            "no change that was tried makes it fit H100",
        ),
    ],
)
def test_the_headline_of_alternatives_says_what_is_fastest(
    rows: list[tuple[str, float, bool]], said: str
) -> None:
    made = [_row(change, cost, fits=fits) for change, cost, fits in rows]
    (figure,) = headlines.alternatives_figures(made)
    assert str(figure) == said


def test_layers_of_a_stack_are_counted_together() -> None:
    """Of an encoder-decoder's two stacks the first layer does without a gradient of its input."""
    said = " ".join(_step("whisper", lora="r=2").text(width=200).split())
    stacks = re.findall(r"\d+ × ([\w.]*layers)", said)
    assert stacks == ["model.encoder.layers", "model.decoder.layers"]
