"""What a report calls parameters, weights and devices under adapters, ZeRO, tp and dp."""

from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.parameter_dtypes import parameter_dtypes
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.conditions import conditions
from llmsim_magic.simulate.report import Report
from tests.helpers import small_models


def _step(**options: Any) -> Report:
    return llmsim.trace(small_models.llama(), phase="train", context=8, **options)


def _headline(report: Report) -> list[str]:
    (summary,) = report.content().parts
    return [f"{figure.value} {figure.label}".strip() for figure in summary.figures]


def _figure(report: Report, word: str) -> str:
    return next(figure for figure in _headline(report) if word in figure)


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({}, "float32"),
        ({"precision": "bf16"}, "bfloat16"),
        ({"precision": "amp"}, "float32"),
        ({"precision": "amp", "zero": 3, "dp": 2}, "float32"),
        ({"precision": "bf16", "lora": "r=2"}, "bfloat16 and float32"),
        ({"qlora": True, "lora": "r=2"}, "4 bits and float32"),
        ({"qlora": True, "lora": "r=2", "precision": "bf16"}, "4 bits and float32"),
    ],
)
def test_weights_are_named_by_the_dtypes_that_they_have(
    options: dict[str, Any], dtypes: str
) -> None:
    report = _step(**options)
    assert parameter_dtypes(report.trace) == dtypes
    assert f"of weights in {dtypes}" in _figure(report, "of weights")
    assert report.summary.value["dtype"] == dtypes
    assert f"dtype {dtypes}" in " ".join(report.text(width=200).split())


def test_adapters_say_how_many_parameters_are_trained() -> None:
    report = _step(lora="r=2")
    trained = report.summary.value["parameters_trainable"]
    assert trained < report.summary.value["parameters"]
    assert _figure(report, "of them trained").startswith(str(trained)[:1])
    assert not any("trained" in figure for figure in _headline(_step()))


@pytest.mark.parametrize(
    ("options", "parameters_per_device", "devices"),
    [
        ({}, False, 1),
        ({"dp": 2}, False, 2),
        ({"dp": 2, "zero": 1}, False, 2),
        ({"dp": 2, "zero": 2}, False, 2),
        ({"dp": 4, "zero": 3}, True, 4),
        ({"tp": 2}, True, 2),
        ({"tp": 2, "dp": 2, "zero": 3}, True, 4),
    ],
)
def test_what_one_device_of_several_has_says_so(
    options: dict[str, Any], parameters_per_device: bool, devices: int
) -> None:
    report = _step(**options)
    whole = _step().summary.value["parameters"]
    assert (report.summary.value["parameters"] < whole) is parameters_per_device
    for word in ("parameters", "of weights"):
        assert _figure(report, word).endswith("per device") is parameters_per_device
    for word in ("FLOPs", "of traffic", "saved for backward"):
        assert ("per device" in _figure(report, word)) is (devices > 1)
    said = report.text(width=100)
    assert ("Parameters per device" in said) is parameters_per_device
    assert ("Work per device" in said) is (devices > 1)
    assert report.summary.value.get("devices", 1) == devices
    for name, number in options.items():
        assert f"{name} {number}" in report.title
        assert f"{name} {number}" in report.page().partition("</title>")[0]
        if devices > 1:
            assert f"{name} {number}" in report.summary.means["devices"]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_pass_of_several_devices_says_so_too(phase: str) -> None:
    report = llmsim.trace(small_models.llama(), phase=phase, context=8, tp=2)
    assert report.title.endswith(", tp 2")
    for word in ("parameters", "of weights", "FLOPs", "of traffic", "of cache"):
        assert "per device" in _figure(report, word)


@pytest.mark.slow
def test_devices_of_every_view_are_counted_with_data_parallelism() -> None:
    options: dict[str, Any] = {"tp": 2, "dp": 4, "zero": 3, "hardware": "H100"}
    report = _step(**options).prepare()
    parts = {part.name: part for part in report.content().parts}
    hardware = parts["hardware"]
    assert "on 8 × H100-SXM5-80GB" in hardware.title
    labels = [figure.label for figure in hardware.figures]
    assert any(label.startswith("each of 8 × H100-SXM5-80GB") for label in labels)
    assert "tokens/s on 8 devices" in labels
    assert report.costing.fits["devices"].tolist() == [8]
    assert set(report.alternatives["devices"]) == {8}
    one: dict[str, Any] = {"phase": "train", "context": 8, "hardware": "H100"}
    titles = {
        "zero 3, dp 4, tp 2": llmsim.size(small_models.llama(), **one | options),
        "zero 3, dp 4": llmsim.size(small_models.llama(), **one | options | {"tp": 1}),
        "optimizer adamw, one device": llmsim.size(small_models.llama(), **one),
    }
    for end, sizing in titles.items():
        assert sizing.title.endswith(end)


def test_a_limit_of_parameters_is_for_the_whole_model() -> None:
    line = "Qwen/Qwen3-0.6B --phase train --context 4 --max-params 500M"
    for layout in ("", " --dp 4 --zero 3", " --tp 2"):
        report = answer(parse(f"{line}{layout}".split(), check=True).request)
        (condition,) = conditions(report)
        assert condition.value == 596_049_920  # as the hub says of it
