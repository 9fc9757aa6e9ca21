"""What would make a training step fit or faster: which changes are tried, and that each is run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import Cancelled, InvalidValue
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Build
from llmsim_magic.simulate.training import alternatives as module
from llmsim_magic.simulate.training import step_on_device
from llmsim_magic.simulate.training.changes import Change, changes
from tests.helpers import small_models
from tests.helpers.training_models import device_of, trained_decoder

MIB = 2**20
STEP = {"phase": "train", "batch": 4, "context": 64}
FEW = ("--checkpointing", "--accumulate 2", "--checkpointing --accumulate 4")


def names(
    build: Build | None = None, *, batch: int = 4, dtype: str = "bfloat16", **options: Any
) -> list[str]:
    made = build or Build(training=Training(**options))
    workload = Workload("train", batch, 128)
    return [each.name for each in changes(made, workload, dtype, combined=False)]


def test_a_plain_step_is_tried_with_each_change() -> None:
    assert names() == [
        "--checkpointing",
        "--accumulate 2",
        "--optimizer adamw_fused",
        "--optimizer adamw_8bit",
        "--lora r=16,targets=all-linear",
        "--lora r=16,targets=all-linear --qlora",
        "--zero 1 --dp 8",
        "--zero 2 --dp 8",
        "--zero 3 --dp 8",
    ]


@pytest.mark.parametrize(
    ("options", "tried", "not_tried"),
    [
        ({"checkpointing": True}, "without --checkpointing", "--checkpointing"),
        ({"optimizer": "lion"}, "--optimizer lion_8bit", "--optimizer adamw_8bit"),
        ({"optimizer": "sgd"}, "--checkpointing", "--optimizer adamw_8bit"),
        ({"lora": "r=8"}, "--qlora", "--lora r=16,targets=all-linear"),
        ({"qlora": True}, "--checkpointing", "--qlora"),
        ({"dp": 4, "zero": 2}, "--zero 3", "--zero 2"),
        ({"accumulate": 2}, "--accumulate 4", "--accumulate 2"),
        ({"accumulate": 4}, "--checkpointing", "--accumulate 8"),
        ({"batch": 9}, "--accumulate 3", "--accumulate 2"),
        ({"dtype": "float32"}, "--precision bf16", "--precision fp32"),
        ({"dtype": "float32", "precision": "amp"}, "--precision bf16", "--precision amp"),
        ({"dtype": "float32"}, "--precision amp", "--attn sdpa"),
    ],
)
def test_changes_are_those_that_the_options_leave_open(
    options: dict[str, Any], tried: str, not_tried: str
) -> None:
    found = names(**options)
    assert tried in found
    assert not_tried not in found


def test_attention_that_writes_its_scores_is_tried_fused() -> None:
    assert "--attn sdpa" in names(Build(training=Training(), attn="eager"))


def test_a_precision_replaces_the_dtype_that_was_asked_for() -> None:
    build = Build(training=Training(), dtype="float32")
    found = changes(build, Workload("train", 1, 8), "float32", combined=False)
    (change,) = (each for each in found if each.name.startswith("--precision bf16"))
    assert change.build.dtype is None
    assert change.build.training == Training(precision="bf16")


def test_a_module_keeps_its_dtype_and_attention() -> None:
    build = Build(training=Training())
    found = changes(build, Workload("train", 1, 8), "float32", combined=False, is_live=True)
    assert [each.name for each in found if "precision" in each.name] == ["--precision amp"]


def test_combinations_change_several_options_and_none_twice() -> None:
    build = Build(training=Training())
    found = changes(build, Workload("train", 4, 128), "bfloat16", combined=True)
    assert len({each.build for each in found}) == len(found)
    training = {each.name: each.build.training for each in found}
    both = training["--optimizer adamw_8bit --checkpointing --accumulate 4"]
    assert both == Training(checkpointing=True, optimizer="adamw_8bit", accumulate=4)
    assert all(each.build != build for each in found)


def test_a_step_that_does_not_fit_is_tried_in_ever_smaller_micro_batches() -> None:
    build = Build(training=Training())
    found = [each.name for each in changes(build, Workload("train", 24, 8), "", combined=True)]
    assert [name for name in found if name.startswith("--accumulate")] == [
        f"--accumulate {count}" for count in (2, 4, 8, 24)
    ]


BASES = (
    "",
    "--checkpointing",
    "--optimizer lion --accumulate 2",
    "--lora r=8,alpha=32,targets=q_proj+v_proj",
    "--lora r=8",
    "--qlora",
    "--dp 4 --zero 1 --precision amp",
    "--dtype float32 --attn eager",
    "--tp 2 --optimizer paged_adamw_32bit",
)


@pytest.mark.parametrize("base", BASES)
def test_what_names_a_row_gives_it_when_typed(base: str) -> None:
    build, workload = _build(base), Workload("train", 8, 128)
    found = changes(build, workload, "float32" if "float32" in base else "", combined=True)
    assert len(found) > 5
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert _build(_typed(base, each.name)) == each.build


def _build(line: str) -> Build:
    return parse_line(f"gpt2 --phase train --batch 8 {line}").request.build


def _typed(base: str, name: str) -> str:
    """The options of a line with those of a change after them, and without what it leaves out."""
    words = base
    typed, *left_out = name.split(", without ") if name.startswith("--") else ("", name[8:])
    for flag in left_out:
        words = re.sub(rf"{flag}( (?!--)\S+)?", "", words)
    return f"{words} {typed}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # renamed
def test_each_row_is_what_its_name_gives_when_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte of its peak, and with the time of its step."""
    kinds = ("--checkpointing", "--lora r=16,targets=all-linear", "--zero 3 --dp 8")

    def some(*arguments: Any, **options: Any) -> tuple[Change, ...]:
        return tuple(each for each in changes(*arguments, **options) if each.name in kinds)

    monkeypatch.setattr(module, "changes", some)
    line = "gpt2 --phase train --batch 4 --context 8 --hardware H100 --launch eager"
    table = _answered(line, small_models.qwen3()).alternatives.set_index("change")
    assert {*table.index} == {"as asked", *kinds}
    for name in kinds:
        report = _answered(f"{line} {name} --memory", small_models.qwen3())
        assert report.memory.loc["peak", "bytes"] == table.loc[name, "peak_bytes"]
        assert report.latency["time_s"].tolist() == [table.loc[name, "time_s"]]


def _answered(line: str, config: Any) -> Report:
    return answer(replace(parse_line(line).request, model=config), with_slow=False)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few changes, so that tests take little time."""

    def some(*arguments: Any, **options: Any) -> tuple[Change, ...]:
        return tuple(each for each in changes(*arguments, **options) if each.name in FEW)

    monkeypatch.setattr(module, "changes", some)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device that holds the step with checkpointing, and not without it."""
    needed = []
    for checkpointing in (True, False):
        trace = llmsim.trace(trained_decoder(), **STEP, checkpointing=checkpointing).trace
        own = runtimes.on("transformers", accelerators.find("L4"))
        needed.append(memory(trace, runtime=own).required)
    device = replace(device_of(sum(needed) // 2), name="L4")
    known = accelerators.find

    def find(name: str) -> Any:
        return device if name == "L4" else known(name)

    monkeypatch.setattr(accelerators, "find", find)
    return "L4"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # renamed
@pytest.mark.usefixtures("few")
def test_what_makes_a_step_fit_comes_first_and_is_what_its_own_trace_says(small: str) -> None:
    report = llmsim.trace(trained_decoder(), **STEP, hardware=small)
    table = report.alternatives
    assert set(table["change"]) == {"as asked", *FEW}
    fits = table["fits"].tolist()
    assert fits == sorted(fits, reverse=True)
    rows = table.set_index("change")
    assert not rows.loc["as asked", "fits"]
    assert rows.loc["--checkpointing", "fits"]
    own = llmsim.trace(trained_decoder(), **STEP, checkpointing=True, hardware=small)
    assert own.memory.loc["peak", "bytes"] == rows.loc["--checkpointing", "peak_bytes"]
    eager = own.latency.set_index("launch").loc["eager"]
    assert rows.loc["--checkpointing", "time_s"] == eager["time_s"]
    assert rows.loc["--checkpointing", "tokens_per_s"] == eager["tokens_per_s"]
    held = table[table["fits"]]
    assert held["tokens_per_s"].is_monotonic_decreasing
    assert held["tokens_per_s_per_device"].is_monotonic_decreasing
    assert table[~table["fits"]]["peak_bytes"].is_monotonic_increasing
    (part,) = [part for part in report.content().parts if part.label == "Alternatives"]
    assert "makes it fit" in str(part.figures[0])
    assert any("alternatives" in name for name in report.files())


@pytest.mark.usefixtures("few")
def test_several_changes_are_not_combined_where_the_step_fits() -> None:
    report = llmsim.trace(small_models.qwen3(), phase="train", batch=4, context=8, hardware="H100")
    assert set(report.alternatives["change"]) == {"as asked", *FEW[:2]}
    assert report.alternatives["fits"].all()


@pytest.mark.usefixtures("few")
def test_a_change_that_the_model_does_not_support_is_a_note() -> None:
    config = transformers.OpenAIGPTConfig(
        vocab_size=100, n_positions=32, n_embd=64, n_layer=1, n_head=4,
        architectures=["OpenAIGPTLMHeadModel"],
    )  # fmt: skip
    report = llmsim.trace(config, phase="train", batch=4, context=8, hardware="H100")
    assert set(report.alternatives["change"]) == {"as asked", "--accumulate 2"}
    (note,) = (note for note in report.notes if note.startswith("no alternative"))
    assert "checkpointing cannot be applied" in note


@pytest.mark.parametrize("name", ["alternatives"])
def test_what_has_no_alternatives_says_so(name: str) -> None:
    report: Report = llmsim.trace(small_models.qwen3(), context=8, hardware="H100")
    with pytest.raises(InvalidValue, match="phase train alone"):
        getattr(report, name)
    report = llmsim.trace(small_models.qwen3(), phase="train", context=8)
    with pytest.raises(InvalidValue, match="name devices"):
        getattr(report, name)


@pytest.mark.usefixtures("few")
def test_a_cancelled_report_stops_between_alternatives() -> None:
    report = llmsim.trace(small_models.qwen3(), phase="train", batch=4, context=8)
    on_device = replace(report, deployment=replace(report.deployment, hardware=("H100",)))
    planner = on_device.planner
    assert planner is not None
    with planner.reporting(lambda _: None, lambda: True), pytest.raises(Cancelled):
        _ = on_device.alternatives


@pytest.mark.usefixtures("few")
def test_memory_and_times_do_not_wait_for_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    step: dict[str, Any] = {"phase": "train", "batch": 4, "context": 8, "hardware": "H100"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "rebuilt", None)  # which no other step can be traced without
        report = llmsim.trace(small_models.qwen3(), **step)
        assert report.memory.loc["peak", "bytes"] > 0
        assert report.latency["time_s"].notna().all()
    assert "--checkpointing" in repr(report)
    assert len(report.alternatives) == 3


@pytest.mark.usefixtures("few")
def test_what_was_asked_before_is_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by another process, and for each device and launch of its own."""
    monkeypatch.setenv("LLMSIM_CACHE", str(tmp_path))
    session_cache.forget()
    step: dict[str, Any] = {"phase": "train", "batch": 4, "context": 8}
    computed: list[str] = []
    really = step_on_device.step_on

    def counted(planner: Any, setup: Any, passes: Any, place: int) -> Any:
        computed.append(passes.devices[place][0].name)
        return really(planner, setup, passes, place)

    monkeypatch.setattr(step_on_device, "step_on", counted)
    first = llmsim.trace(small_models.qwen3(), **step, hardware="H100").alternatives
    assert computed == ["H100-SXM5-80GB"] * len(first)
    session_cache.forget()
    again = llmsim.trace(small_models.qwen3(), **step, hardware="H100").alternatives
    pd.testing.assert_frame_equal(first, again)
    assert len(computed) == len(first)
    _ = llmsim.trace(small_models.qwen3(), **step, hardware=["H100", "L4"]).alternatives
    assert computed[len(first) :] == ["L4"] * len(first)
    _ = llmsim.trace(small_models.qwen3(), **step, hardware="L4", launch="graph").alternatives
    assert computed[2 * len(first) :] == ["L4"] * len(first)
    session_cache.forget()


@pytest.mark.usefixtures("few")
def test_a_context_beyond_the_declared_one_has_alternatives_too() -> None:
    report = llmsim.trace(small_models.qwen3(), phase="train", batch=2, context=64, hardware="H100")
    assert len(report.alternatives) > 1
