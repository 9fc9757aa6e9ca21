"""The benchmark of a GPU, on a CPU: what it measures, the rows it writes and what it reports."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import silicon, silicon_models
from benchmarks.silicon_kernels import ceilings, kernels
from benchmarks.silicon_models import LOADS, fits, fitting, measured
from benchmarks.silicon_report import Predicted, hardware_of, predict, predict_memory, report
from benchmarks.silicon_rows import Row
from llmsim_magic.capture.measure.model_passes import build, repeatable_pass
from llmsim_magic.catalog.models import Entry, entries
from llmsim_magic.records.trace.workload import Workload
from tests.helpers.small_grid import SMALL
from tests.helpers.small_models import CONFIGS

CPU = torch.device("cpu")
GIB = 2**30
INFER = {  # what the rows of an H100 hold that the calibration was made from
    *("kind", "model", "phase", "batch", "context", "eager_s", "eager_min", "eager_max", "n"),
    *("cache_bytes", "graph_s", "graph_min", "graph_max"),
}
ROW: Row = {
    "kind": "infer",
    "model": "gpt2",
    "phase": "prefill",
    "batch": 1,
    "context": 128,
    "eager_s": 10e-3,
    "graph_s": 1e-3,
    "peak_above": 100 * 2**20,
    "device": "NVIDIA H100 80GB HBM3",
}


def _always() -> bool:
    return True


def _entry(name: str, billions: float, model_type: str = "llama", **config: Any) -> Entry:
    config = {"model_type": model_type, "architectures": ["LlamaForCausalLM"]} | config
    params = round(billions * 1e9)
    return Entry(
        name=name,
        aliases=(),
        config=config,
        params=params,
        published_params=params,
        source="",
        note=None,
        difference={},
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a small one of two layers."""
    config = CONFIGS["qwen3"]()
    config.max_position_embeddings = 2048
    model = transformers.Qwen3ForCausalLM(config).eval()
    monkeypatch.setattr(silicon_models, "build", lambda *_: model)


def test_models_are_chosen_by_the_memory_that_is_free() -> None:
    known = [
        *(_entry("small", 1), _entry("middle", 8), _entry("large", 14), _entry("too large", 70)),
        _entry("other", 3, "gpt2"),
        _entry("packed", 1, quantization_config={"quant_method": "fp8"}),
        _entry("with images", 1, architectures=["LlavaForConditionalGeneration"]),
        _entry("without a class", 1, architectures=None),
    ]
    by_name = {each.name: each for each in known}
    assert fitting(by_name, 80 * GIB) == ["large", "other", "middle", "small"]
    assert fitting(by_name, 20 * GIB) == ["middle", "other", "small"]
    assert fitting(by_name, 1 * GIB) == []


def test_large_models_take_turns_with_small_ones() -> None:
    families = {str(n): _entry(str(n), n, f"family {n}") for n in (1, 2, 3, 4, 5)}
    assert fitting(families, 80 * GIB) == ["5", "1", "4", "2", "3"]


def test_the_models_of_the_catalogue_that_fit_on_an_h100() -> None:
    names = fitting(entries(), 79 * GIB)
    assert {"gpt2", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B"} <= set(names)
    assert "meta-llama/Llama-3.1-70B" not in names
    assert "openai/gpt-oss-20b" not in names  # its weights are packed
    assert len(names) == len(set(names)) > 40


def test_a_model_is_built_with_its_own_class_and_size() -> None:
    model = build("gpt2", torch.device("meta"), torch.bfloat16)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.num_parameters() == entries()["gpt2"].params
    assert silicon_models.positions(model) == 1024


def test_a_load_fits_into_the_positions_of_a_model() -> None:
    assert fits(Workload("prefill", 1, 1024), 1024)
    assert not fits(Workload("decode", 1, 1024), 1024)
    assert fits(Workload("decode", 1, 1023), 1024)
    assert fits(Workload("decode", 1, 8192), None)


def test_rows_of_a_model_have_the_format_of_the_calibration_data(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiled = Workload("prefill", 1, 16)
    monkeypatch.setattr(silicon_models, "PROFILED", profiled)
    loads = (profiled, Workload("prefill", 2, 8), Workload("decode", 2, 8))
    found = [*measured("small", CPU, loads, _always)]
    assert [row["kind"] for row in found] == ["infer", "profile", "infer", "infer"]
    profile = found.pop(1)
    for row, load in zip(found, loads, strict=True):
        assert row.keys() == INFER
        assert (row["model"], row["phase"]) == ("small", load.phase)
        assert (row["batch"], row["context"]) == (load.batch, load.context)
        assert 0 < row["eager_min"] <= row["eager_s"] <= row["eager_max"]
        assert 0 < row["graph_min"] <= row["graph_s"] <= row["graph_max"]
        assert row["n"] >= 5
    config = CONFIGS["qwen3"]()
    heads = config.num_key_value_heads * config.head_dim
    assert [row["cache_bytes"] for row in found] == [
        *(0, 0),
        2 * 8 * config.num_hidden_layers * 2 * heads * 4,  # tokens × layers × K and V × fp32
    ]
    assert profile.keys() == {"kind", "model", "batch", "context", "rows"}
    matmuls = [row for row in profile["rows"] if row["kernel"] in ("aten::mm", "aten::addmm")]
    assert matmuls
    assert matmuls[0].keys() == {"kernel", "input_shapes", "count", "device_us"}
    assert json.loads(json.dumps(found)) == found


@torch.no_grad()
def test_a_decode_step_is_repeated_with_the_same_cache() -> None:
    model = transformers.Qwen3ForCausalLM(CONFIGS["qwen3"]()).eval()
    step, _ = repeatable_pass(model, Workload("decode", 2, 8), CPU)
    for _ in range(3):
        cache = step().past_key_values  # type: ignore[attr-defined]
        assert cache.get_seq_length() == 8 + 1


def test_a_model_that_cannot_be_built_or_run_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = measured("no/such model", CPU, LOADS, _always)
    assert row["model"] == "no/such model"
    assert row["error"]
    model = transformers.Qwen3ForCausalLM(CONFIGS["qwen3"]())
    model.forward = None  # type: ignore[assignment]
    monkeypatch.setattr(silicon_models, "build", lambda *_: model)
    monkeypatch.setattr(silicon_models, "positions", lambda model: None)
    (row,) = measured("broken", CPU, LOADS[:1], _always)
    assert (row["phase"], row["batch"], row["context"]) == ("prefill", 1, 128)
    assert "NoneType" in row["error"]


def test_an_encoder_has_no_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.BertForMaskedLM(CONFIGS["bert"]()).eval()
    monkeypatch.setattr(silicon_models, "build", lambda *_: model)
    loads = (Workload("prefill", 1, 8), Workload("decode", 1, 8))
    assert [row["phase"] for row in measured("bert", CPU, loads, _always)] == ["prefill"]


def test_a_model_stops_when_the_time_is_over(small: None) -> None:
    turns = iter((True, False))
    assert len([*measured("small", CPU, LOADS[:3], lambda: next(turns))]) == 1


def test_a_slow_pass_is_not_captured(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon_models, "SLOW_S", 0.0)
    (row,) = measured("small", CPU, (Workload("prefill", 1, 8),), _always)
    assert "graph_s" not in row
    assert row["graph_error"].startswith("not captured: a pass takes")


def test_rows_of_kernels_name_them_with_shapes_and_seconds() -> None:
    found = [*kernels(CPU, _always, SMALL)]
    assert all(row["kind"] == "kernel" for row in found)
    timed = [row for row in found if "seconds" in row]
    assert all(0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"] for row in timed)
    first = timed[0]
    assert (first["kernel"], first["class"], first["dtype"]) == (
        *("aten::add", "pointwise"),
        "bfloat16",
    )
    assert first["shapes"] == [[1, 256], [1, 256]]
    attentions = [row for row in found if "implementation" in row]
    assert [row["implementation"] for row in attentions if not row["selected"]] == [
        *("cudnn", "flash", "efficient", "math")
    ] * len(SMALL.attentions)
    chosen = [row for row in attentions if row["selected"]]
    assert len(chosen) == len(SMALL.attentions) + len(SMALL.masked)
    assert {row["implementation"] for row in chosen} <= {"flash", "math"}  # those of a CPU
    assert [row for row in found if "error" in row], "a CPU has no cuDNN"
    assert json.loads(json.dumps(found)) == found


def test_a_long_pass_is_timed_three_times(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon_models, "LONG_S", 0.0)
    (row,) = measured("small", CPU, (Workload("prefill", 1, 8),), _always)
    assert row["n"] == 3
    assert "graph_s" in row


def test_kernels_stop_when_the_time_is_over() -> None:
    turns = iter((True, True, False))
    assert len([*kernels(CPU, lambda: next(turns), SMALL)]) == 2


def test_ceilings_are_rows_of_their_own() -> None:
    matmul, copy = ceilings(CPU, size=64, nbytes=2**16)
    assert matmul.keys() == {"kind", "matmul_tflops"}
    assert copy.keys() == {"kind", "copy_tb_s"}
    assert min(matmul["matmul_tflops"], copy["copy_tb_s"]) > 0


def _guess(row: Row) -> tuple[Predicted, ...]:
    eager = Predicted("transformers", "eager", 11e-3, 8e-3, 12e-3)
    return eager, replace(eager, launch="graph", seconds=0.8e-3, low=0.7e-3, high=0.9e-3)


def test_a_report_holds_predictions_against_measurements() -> None:
    rows = [
        *({"kind": "ceiling", "copy_tb_s": 2.9}, ROW),
        ROW | {"eager_s": 22e-3, "graph_s": 0.8e-3, "peak_above": 50 * 2**20},
    ]
    text = "\n".join(report(rows, _guess, lambda row: 101 * 2**20))
    first = "| gpt2 | prefill | 1 × 128 | transformers, "
    assert f"{first}eager | 10.00 ms | 11.00 ms | 8.00 to 12.00 ms | +10% | yes |" in text
    assert f"{first}graph | 1.00 ms | 0.80 ms | 0.70 to 0.90 ms | -20% | no |" in text
    assert f"{first}eager | 22.00 ms | 11.00 ms | 8.00 to 12.00 ms | -50% | no |" in text
    assert "| gpt2 | prefill | 1 × 128 | 100.0 MiB | 101.0 MiB | +1.00% |" in text
    assert "| transformers, eager, prefill | 2 | 30% | 50% | 50% |" in text
    assert "| transformers, graph, prefill | 2 | 10% | 20% | 50% |" in text
    assert "| memory | 2 | 51.50% | 102.00% |  |" in text


def test_a_report_says_what_is_missing() -> None:
    rows: list[Row] = [
        {"kind": "infer", "model": "broken", "error": "no class", "device": ROW["device"]},
        {key: value for key, value in ROW.items() if not key.startswith("graph")}
        | {"graph_error": "it waits"},
        ROW | {"model": "no/such-model-anywhere"},
        ROW | {"device": "NVIDIA X"},
    ]
    lines = [*report(rows)]
    assert "broken was not measured: no class" in lines
    assert "gpt2, prefill, 1 × 128 is not in a CUDA graph: it waits" in lines
    assert any("no/such-model-anywhere, prefill, 1 × 128 is not predicted" in x for x in lines)
    assert "NVIDIA X: no time is predicted, only memory" in lines


def test_a_pass_is_predicted_for_the_device_that_measured_it() -> None:
    found = predict(ROW)
    assert found
    for each in found:
        assert 0 < each.low <= each.seconds <= each.high
    assert 10 * 2**20 < predict_memory(ROW) < 30 * 2**20
    assert predict(ROW | {"device": "NVIDIA X"}) == ()


def test_the_catalogue_s_name_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware_of("NVIDIA H100 80GB HBM3") == "H100-SXM5-80GB"
    assert hardware_of("NVIDIA X") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    assert hardware_of("NVIDIA X") == "local"


def test_without_cuda_the_benchmark_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit, match="a CUDA device is needed") as refused:
        silicon.main(["--out", str(out)])
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_an_unknown_model_is_an_error_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(silicon, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="silicon: no/such-model-anywhere"):
        silicon.main(["--models", "gpt2, no/such-model-anywhere"])


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"silicon: .*No such file"):
        silicon.main(["--report", str(tmp_path / "none.jsonl")])


def test_a_report_of_rows_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps({"kind": "ceiling"}) + "\n", "utf-8")
    silicon.main(["--report", str(file)])
    assert "| gpt2 | prefill | 1 × 128 |" in capsys.readouterr().out


def test_rows_are_labelled_and_written_as_they_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        rows = silicon._written(silicon._labelled([ROW, ROW], "NVIDIA X"), file)
        first = next(rows)
        assert json.loads(path.read_text("utf-8")) == first
    assert first["device"] == "NVIDIA X"
    assert (first["torch"], first["transformers"]) == (torch.__version__, transformers.__version__)
    assert len(first["date"]) == len("2026-01-31")


def test_a_run_without_time_stops_after_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon, "ceilings", lambda device: iter([{"kind": "ceiling"}]))
    monkeypatch.setattr(
        silicon, "kernels", lambda device, has_time: iter(() if has_time() else [{}])
    )
    assert [*silicon.measure(CPU, ["gpt2"], 0.0)] == [{"kind": "ceiling"}, {}]
