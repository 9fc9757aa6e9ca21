"""Devices that do not compute in the dtype of a workload: never recommended, always with why."""

from typing import Any

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import InvalidValue, RefusedDtype
from llmsim_magic.simulate.report import Report
from llmsim_magic.views import headlines
from llmsim_magic.views.tables.memory import ranked
from tests.helpers import small_models

WHY = "does not compute in bfloat16"
REFUSING = ("V100-SXM2-32GB", "T4")
MIXED = (*REFUSING, "L4")


def traced(dtype: str = "bfloat16", **options: Any) -> Report:
    given = {"batch": 2, "context": 16, "dtype": dtype} | options
    return llmsim.trace(small_models.llama(), **given)


def words(figures: Any) -> list[str]:
    return [f"{each.value} {each.label}" for each in figures]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_device_refuses_what_cannot_be_priced_on_it(dtype: str) -> None:
    trace, refusing = traced(dtype).trace, 0
    for device in map(accelerators.find, accelerators.entries()):
        if device.bandwidth_bytes_per_s is None or "fp32" not in device.peak_flops:
            continue
        price = latency if device.kind == "cpu" else transformers_time
        how = {"regime": "eager"} if device.kind == "cpu" else {"launch": "eager"}
        why = refusal(trace, device)
        refusing += why is not None
        if why is None:
            price(trace, device, **how)  # type: ignore[operator]
        else:
            assert why == f"does not compute in {dtype}"
            with pytest.raises(InvalidValue):
                price(trace, device, **how)  # type: ignore[operator]
    assert bool(refusing) is (dtype != "float32")


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"phase": "train", "batch": 2}, marks=pytest.mark.slow)]
)
def test_size_ranks_a_refusing_device_last_and_says_why(options: dict[str, Any]) -> None:
    given = {"context": 8, "hardware": MIXED, "dtype": "bfloat16"} | options
    sizing = llmsim.size(small_models.llama(), **given)
    rows = sizing.table.set_index("device")
    assert rows["fits"].all()
    assert set(rows.loc[list(REFUSING), "refusal"]) == {WHY}
    order = [*ranked(sizing.table, ["train"] if options else ["prefill", "decode"])["device"]]
    assert order[0] == "L4"
    assert set(order[-len(REFUSING) :]) <= set(REFUSING)
    assert not {each for each in order[: order.count("L4")] if each != "L4"}
    assert rows.loc["L4", ["fits"]].all(axis=None)
    assert rows.loc[["L4"], "refusal"].isna().all()
    assert any(note == f"no time on {', '.join(REFUSING)}: {WHY}" for note in sizing.notes)
    assert "1 of 3 devices fit it and compute in its dtype" in " ".join(repr(sizing).split())
    assert WHY in repr(sizing)
    assert "fastest" in repr(sizing)
    times = [name for name in rows if name.endswith("_s") and "tokens" not in name]
    assert rows.loc[list(REFUSING), times].isna().all(axis=None)


@pytest.mark.slow
def test_size_gives_no_batch_of_a_device_that_refuses() -> None:
    sizing = llmsim.size(
        small_models.llama(), phase="train", batch=2, context=8, dtype="bf16", hardware=MIXED
    )
    rows = sizing.table.set_index("device")
    assert (
        rows.loc[list(REFUSING), ["largest_micro_batch", "longest_context"]].isna().all(axis=None)
    )
    assert rows.loc[list(REFUSING), "devices_with_zero"].isna().all()
    assert rows.loc["L4", "largest_micro_batch"] > 0


@pytest.mark.parametrize("phase", ["prefill", pytest.param("train", marks=pytest.mark.slow)])
def test_a_report_counts_and_times_only_devices_that_compute_in_the_dtype(phase: str) -> None:
    report = traced(phase=phase, hardware=MIXED)
    fits = report.costing.fits.set_index("device")
    assert set(fits.loc[list(REFUSING), "refusal"]) == {WHY}
    assert fits.loc[list(REFUSING), ["largest_batch", "longest_context"]].isna().all(axis=None)
    assert "1 of 3 devices fit it and compute in its dtype" in words(
        headlines.fit_figures(report.costing.capacities)
    )
    assert set(report.latency["device"]) == {"L4"}
    assert any(f"on V100-SXM2-32GB: hardware: V100-SXM2-32GB {WHY}" in note for note in
               report.costing.remarks())  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "other"), [("float16", "V100-SXM2-32GB"), ("bfloat16", "A100-SXM4-40GB")]
)
def test_no_device_that_refuses_is_offered_instead(
    dtype: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("V100-SXM2-16GB", "V100-SXM2-32GB", "A100-SXM4-40GB", "L4")
    known = {name: accelerators.find(name) for name in names}
    monkeypatch.setattr(accelerators, "entries", lambda: known)
    report = traced(dtype, batch=600_000, context=32, hardware=("V100-SXM2-16GB", "L4"))
    costing = report.costing
    assert not costing.capacities[0].fits
    assert costing.larger_devices["V100-SXM2-16GB", "transformers"] == other
    sentences = [each for each in costing.misfits if "on V100" in each or "V100" in each[:4]]
    refused = f"V100-SXM2-16GB {WHY}, so it cannot run this; one {other} can"
    assert (refused in sentences) is (dtype == "bfloat16")


def test_a_condition_of_memory_says_that_the_device_refuses_the_dtype() -> None:
    found = traced(hardware=MIXED).conditions
    assert found["holds"].all()  # it is of bytes alone
    assert {name: set(rows["detail"].dropna()) for name, rows in found.groupby(level=0)} == {
        f"fits {name}": {f"{name} {WHY}"} if name in REFUSING else set() for name in MIXED
    }


@pytest.mark.slow
def test_alternatives_offer_a_dtype_in_which_the_device_computes() -> None:
    report = traced(phase="train", hardware=("V100-SXM2-32GB", "L4"))
    rows = report.alternatives
    refused = rows[rows["device"] == "V100-SXM2-32GB"]
    assert set(refused["refusal"].dropna()) == {WHY}
    offered = refused[refused["refusal"].isna()]
    assert set(offered["change"]) == {"--dtype float16", "--precision fp32, without --dtype"}
    assert list(refused.index[: len(offered)]) == list(offered.index)
    figures = words(headlines.alternatives_figures(report.traced_alternatives.rows))
    assert any("makes it run on V100-SXM2-32GB" in each for each in figures)


# the error of a single device: where the dtype is from, and what to give


@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_the_error_says_that_the_config_chose_the_dtype(phase: str) -> None:
    config = small_models.llama()
    config.dtype = torch.bfloat16
    with pytest.raises(RefusedDtype) as raised:
        _ = llmsim.trace(config, phase=phase, batch=2, context=8, hardware="T4").latency
    assert str(raised.value) == (
        "hardware: T4 does not compute in bfloat16, the dtype in the config of LlamaConfig; "
        "T4 computes in fp32, fp16, int8; give dtype float32 or float16, or a device with bf16"
    )


def test_the_error_says_that_the_dtype_was_given() -> None:
    with pytest.raises(RefusedDtype, match="bfloat16, the dtype that was given; T4 "):
        _ = traced(hardware="T4").latency


def test_the_error_names_the_dtype_of_a_module() -> None:
    module = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    with pytest.raises(RefusedDtype, match=r"the dtype of the module; .* give a module in"):
        _ = llmsim.trace(
            module, inputs=torch.ones(4, 8, dtype=torch.bfloat16), hardware="T4"
        ).latency


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_the_error_advises_works(dtype: str) -> None:
    for phase in ("prefill", "train"):
        assert traced(dtype, phase=phase, hardware="T4").latency["time_s"].gt(0).all()


def test_a_cpu_whose_memory_is_unknown_has_the_reason_too() -> None:
    names = ["Core i9-13900K", "EPYC 9965"]
    sizing = llmsim.size(small_models.llama(), context=8, dtype="bfloat16", hardware=[*names, "L4"])
    rows = sizing.table.set_index("device")
    reasons = (WHY, "has no peak that is known")
    assert rows.loc[names, "refusal"].tolist() == [*reasons]
    assert rows.loc[["L4"], "refusal"].isna().all()
    for name, why in zip(names, reasons, strict=True):
        assert [note for note in sizing.notes if why in note] == [f"no time on {name}: {why}"]
