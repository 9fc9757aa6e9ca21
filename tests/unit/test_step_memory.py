"""The memory of a training step as a report shows it: parts, peak, what is reserved, and fits."""

import re
from dataclasses import replace
from typing import Any

import pytest
import transformers

import llmsim_magic as llmsim
from llmsim_magic.analyses.memory.capacity import Setup, fit
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models

PARTS = ["parameters", "gradients", "optimizer", "saved", "temporaries"]
MIB = 2**20


def _config() -> Any:
    return transformers.Qwen3Config(
        vocab_size=4096, hidden_size=256, intermediate_size=640, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


def _report(**options: Any) -> Report:
    return llmsim.trace(_config(), phase="train", batch=4, context=128, **options)


@pytest.fixture(scope="module")
def report() -> Report:
    return _report(hardware="H100")


def test_parts_are_those_of_the_contract_and_add_up_to_the_peak(report: Report) -> None:
    table = report.memory
    assert list(table.index[:6]) == [*PARTS, "peak"]
    assert list(table.columns) == ["runtime", "bytes", "share", "means"]
    assert set(table["runtime"]) == {"transformers"}
    assert table.loc[PARTS, "bytes"].sum() == table.loc["peak", "bytes"]
    assert table.loc[PARTS, "share"].sum() == pytest.approx(1)


def test_parameters_are_those_of_the_model_and_states_twice_as_many(report: Report) -> None:
    """AdamW keeps two tensors of each parameter's dtype; blocks round each to 512 bytes."""
    parts = report.memory["bytes"]
    exact = sum(each.nbytes for each in report.trace.parameters if each.tied_to is None)
    blocks = 512 * len(report.trace.parameters)
    assert exact <= parts["parameters"] <= exact + blocks + MIB
    assert 2 * exact <= parts["optimizer"] + 2 * blocks <= 2 * exact + 4 * blocks + 2 * MIB


def test_the_first_step_peaks_below_a_steady_one(report: Report) -> None:
    """Unless the optimizer's own pass is the peak of both."""
    parts = report.memory["bytes"]
    assert parts["first_step_peak"] <= parts["peak"] <= parts["reserved_low"]
    assert parts["reserved_low"] < parts["reserved_high"]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # renamed
def test_checkpointing_saves_less() -> None:
    saved = [
        _report(checkpointing=checkpointing).memory["bytes"]["saved"]
        for checkpointing in (False, True)
    ]
    assert saved[1] < saved[0] / 2


def test_a_device_holds_what_is_reserved_beside_its_context(report: Report) -> None:
    found = report.costing.memories["transformers"]
    reserved = found.reserved
    assert reserved is not None
    assert found.required == reserved.high + found.context
    (fit,) = report.costing.capacities
    assert fit.fits
    assert fit.runtime == "transformers"
    assert fit.needed == found.required


def test_the_headline_opens_with_the_peak_and_whether_it_fits(report: Report) -> None:
    report.prepare()
    parts = {part.name: part.figures[:2] for part in report.content().parts}
    assert list(parts) == ["hardware", "summary", "hardware-alternatives"]
    for first, second in (parts["hardware"], parts["summary"]):
        assert first.label.startswith("peak in ")
        assert second.value == "fits"


def test_a_device_fits_what_it_has_room_for_and_not_a_byte_less(report: Report) -> None:
    """States, gradients and what is only reserved count as well."""
    found = report.costing.memories["transformers"]
    own = replace(runtimes.find("transformers"), visible_share=1.0)
    setup = Setup(batch=4, context=128, phase="train")
    h100 = accelerators.find("H100")
    for missing, binds in ((0, None), (1, "reserved")):
        device = replace(h100, memory_bytes=found.required - missing)
        answer = fit(setup, device, own, lambda _: found)
        assert answer is not None
        assert answer.binds == binds


def test_only_smaller_workloads_are_tried_for_a_training_step(report: Report) -> None:
    planner = report.planner
    assert planner is not None
    own, needed = runtimes.find("transformers"), report.costing.memories["transformers"].required
    memory_bytes = int(needed / own.visible_share) - 8 * MIB
    device = replace(accelerators.find("H100"), memory_bytes=memory_bytes)
    answer = planner.fit(Setup(batch=4, context=128, phase="train"), device, "transformers")
    assert answer is not None
    assert not answer.fits
    assert {what for remedy in answer.remedies for what, _ in remedy.changes} == {
        "batch",
        "context",
    }
    assert all(remedy.total <= answer.usable for remedy in answer.remedies)


@pytest.mark.parametrize("name", ["weight_dtype", "kv_dtype"])
def test_stored_dtypes_are_refused(name: str, report: Report) -> None:
    with pytest.raises(InvalidValue, match=f"{name} has no effect on a training step"):
        memory(report.trace, **{name: "int8"})


BEYOND = 1024  # tokens, four times what the config declares


def test_a_context_beyond_the_declared_one_has_memory_and_a_note() -> None:
    """Training may extend the context; the model has no table of positions that ends."""
    config = _config()
    config.max_position_embeddings = BEYOND
    declared = llmsim.trace(config, phase="train", context=BEYOND)
    beyond = llmsim.trace(_config(), phase="train", context=BEYOND)
    assert beyond.memory["bytes"].equals(declared.memory["bytes"])
    (summary,) = beyond.content().parts
    assert summary.figures[0].label.startswith("peak in ")
    note = "1,024 tokens exceed the model's maximum of 256 tokens in its config"
    assert note in beyond.remarks()
    assert note not in declared.remarks()


@pytest.mark.slow
def test_whether_a_device_holds_a_context_beyond_the_declared_one_is_said() -> None:
    report = llmsim.trace(_config(), phase="train", context=BEYOND, hardware="H100").prepare()
    for view in ("hardware", "summary"):
        figures = next(part.figures for part in report.content().parts if part.name == view)
        assert figures[0].label.startswith("peak in ")
        assert figures[1].value == "fits"
    (row,) = report.costing.fits.to_dict("records")
    assert row["fits"]
    assert row["longest_context"] == BEYOND
    sizing = llmsim.size(_config(), phase="train", context=BEYOND, hardware="H100").table
    assert sizing.loc[0, "longest_context"] == BEYOND


@pytest.mark.slow
def test_what_does_not_fit_beyond_the_declared_context_has_remedies() -> None:
    report = llmsim.trace(_config(), phase="train", batch=8, context=400_000, hardware="L4")
    (said,) = report.costing.misfits
    assert "does not fit" in said
    assert re.search(r"fits with (batch|context) [\d,]+", said)


def test_a_context_beyond_the_table_of_positions_is_refused() -> None:
    for call, said in ((llmsim.trace, "has 32 entries"), (llmsim.size, "context 33 exceeds")):
        with pytest.raises(InvalidValue, match=said):
            call(small_models.gpt2(), phase="train", context=33, hardware="H100")
