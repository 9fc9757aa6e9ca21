"""Every figure is that of a named runtime and launch, through every front door."""

import json
from typing import Any

import pandas as pd
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic import LlmsimError
from llmsim_magic.__main__ import main
from llmsim_magic.analyses.engine.engine_coverage import engine_gap
from llmsim_magic.analyses.memory.memory import memory
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.torch_time.transformers_time import transformers_time
from llmsim_magic.capture.measure import cuda_device
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.catalog.torch_calibration import torch_calibration
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.notebook.code_export import magic_line, python_call
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.hardware import device_passes, local_device
from llmsim_magic.views.notes import memory_notes
from tests.helpers import small_models
from tests.helpers.shells import NO_HISTORY

EXECUTIONS = [("transformers", "eager"), ("transformers", "graph"), ("vllm", "graph")]
H100 = accelerators.find("H100")


def executions(table: pd.DataFrame) -> list[tuple[str, str]]:
    pairs = zip(table["runtime"], table["launch"], strict=True)
    return list(dict.fromkeys(pairs))


def said_by(call: Any) -> str:
    with pytest.raises(LlmsimError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# what is shown


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, EXECUTIONS),
        ({"runtime": "all"}, EXECUTIONS),
        ({"runtime": "transformers"}, EXECUTIONS[:2]),
        ({"runtime": "vllm"}, EXECUTIONS[2:]),
        ({"launch": "graph"}, EXECUTIONS[1:]),
        ({"launch": "eager"}, EXECUTIONS[:1]),
        ({"runtime": "transformers", "launch": "graph"}, EXECUTIONS[1:2]),
    ],
)
def test_a_runtime_and_a_launch_choose_the_rows(
    given: dict[str, str], shown: list[tuple[str, str]]
) -> None:
    config = small_models.llama()
    report = llmsim.trace(config, context=8, hardware="H100", **given)
    for table in (report.latency, report.times, report.sizing.table):
        assert executions(table) == shown
    of_memory = list(dict.fromkeys(runtime for runtime, _ in shown))
    assert list(dict.fromkeys(report.memory["runtime"])) == of_memory
    assert report.costing.fits["runtime"].tolist() == of_memory


def test_columns_stand_in_the_order_that_the_design_gives() -> None:
    report = llmsim.trace(small_models.llama(), context=8, hardware="H100")
    start = ["device", "runtime", "launch", "phase", "batch", "context"]
    assert list(report.latency)[:10] == [
        *start, "time_s", "time_low_s", "time_high_s", "tokens_per_s",
    ]  # fmt: skip
    assert list(report.times)[:4] == ["path", "op", "runtime", "launch"]
    assert report.times.index.name == "order"
    assert list(report.memory) == ["runtime", "bytes", "share", "means"]
    assert report.memory.index.name == "quantity"
    assert list(report.costing.fits)[:3] == ["device", "runtime", "devices"]
    assert list(report.sizing.table)[:4] == ["device", "runtime", "launch", "devices"]


def test_each_row_is_the_time_of_its_own_runtime() -> None:
    report = llmsim.trace(small_models.llama(), context=8, hardware="H100")
    own = [transformers_time(report.trace, H100, launch) for launch in ("eager", "graph")]
    own.append(latency(report.trace, H100))
    rows = report.latency[report.latency["phase"] == "prefill"]
    assert rows["time_s"].tolist() == pytest.approx([time.seconds for time in own])
    for (runtime, launch), time in zip(EXECUTIONS, own, strict=True):
        is_own = (report.times["runtime"] == runtime) & (report.times["launch"] == launch)
        assert report.times[is_own]["time_s"].sum() == pytest.approx(time.seconds)
        assert report.times[is_own].index.tolist() == list(range(len(time.operators)))


def test_tables_of_one_execution_say_which() -> None:
    for launch, name in (("eager", "transformers, eager"), ("graph", "transformers, CUDA graph")):
        report = answer(
            parse_line(f"distilgpt2 --costs --ops --hardware H100 --launch {launch}").request
        )
        own = transformers_time(report.trace, H100, launch)
        assert report.layers["time_s"].sum() == pytest.approx(own.seconds)
        assert report.costs["time_s"].sum() == pytest.approx(own.seconds)
        parts = report.content().parts
        titles = [part.title for part in parts]
        titles += [section.title for part in parts for section in part.sections]
        for start in ("Costs of", "distilgpt2 on", "Operators, with", "Time of the operators"):
            named = [title for title in titles if title.startswith(start)]
            assert named
            assert all(name in title for title in named)
        assert f"({name})" in report.costing.roofline.title
        (process,) = (
            event["args"]["name"]
            for event in json.loads(report.costing.events)["traceEvents"]
            if event["name"] == "process_name"
        )
        assert name in process


def test_bytes_beside_times_of_an_engine_are_those_of_its_kernels() -> None:
    """A paged cache is written in place: of each layer, the keys and values of the new token."""
    line = "Qwen/Qwen3-0.6B --costs --phase decode --context 4096 --hardware H100 --runtime"
    own = answer(parse_line(f"{line} transformers").request)
    engine = answer(parse_line(f"{line} vllm").request)
    new_tokens = 28 * 2 * 8 * 128 * 2  # layers, keys and values, heads, sizes, bytes
    assert engine.costs.loc["DynamicCache.update", "bytes"] == 2 * new_tokens  # read and written
    assert engine.costs.loc["DynamicCache.update", "bytes_share"] < 0.001
    assert own.costs.loc["DynamicCache.update", "bytes_share"] > 0.3
    assert "bytes" not in own.costs
    time = engine.costing.first_passes[0][1]
    moved = sum(operator.bytes for operator in time.operators)
    for table in (engine.costs, engine.layers, engine.costing.operators):
        assert table["bytes"].sum() == pytest.approx(moved)
        assert table["bytes_read"].isna().all()
    assert engine.costs["bytes_share"].sum() == pytest.approx(1)
    (headline, *_) = engine.content().parts
    assert headline.figures[1].exact == f"{round(moved):,} bytes"
    assert engine.ops["bytes_read"].notna().all()  # the record is what the model runs


def test_a_comparison_is_of_the_first_execution_and_names_it() -> None:
    report = answer(parse_line("distilgpt2 --compare gpt2 --hardware H100").request)
    row = report.comparison.loc["decode_s on H100-SXM5-80GB"]
    assert row["unit"] == "s, transformers, eager"
    first = report.latency[report.latency["phase"] == "decode"].iloc[0]
    assert row["distilgpt2"] == first["time_s"]
    assert report.comparison.loc["memory_bytes", "unit"] == "bytes, transformers"
    total = report.memory.loc["total"].set_index("runtime")["bytes"]
    assert report.comparison.loc["memory_bytes", "distilgpt2"] == total["transformers"]
    part = report.content().parts[0]
    assert part.title == "distilgpt2 vs gpt2"
    section = next(each for each in part.sections if each.title == "Quantities")
    assert section.remark == "Memory under transformers, times of transformers, eager."
    one = answer(
        parse_line("distilgpt2 --compare gpt2 --hardware H100 --runtime vllm").request
    ).comparison
    assert one.loc["memory_bytes", "unit"] == "bytes, vLLM"


# memory


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_memory_without_hardware_is_that_of_a_plain_call(phase: str) -> None:
    report = llmsim.trace(small_models.llama(), phase=phase, batch=2, context=9)
    own = memory(report.trace, runtime=runtimes.find("transformers"))
    assert set(report.memory["runtime"]) == {"transformers"}
    for name in ("weights", "buffers", "cache", "activations", "context", "total"):
        assert report.memory.loc[name, "bytes"] == getattr(own, name)
    assert own.reserved is not None
    ends = report.memory.loc[["reserved_low", "reserved_high"], "bytes"].tolist()
    assert ends == [own.reserved.low, own.reserved.high]
    assert pd.isna(report.memory.loc["context", "share"]), "outside the total"


def test_allowances_of_an_engine_are_those_of_vllm_alone() -> None:
    report = llmsim.trace(small_models.llama(), context=9, runtime="all")
    plain, engine = (report.memory[report.memory["runtime"] == name] for name in runtimes.entries())
    said = memory_notes(report.costing.memories)
    (sampling,) = (note for note in said if "sampling" in note)
    (share,) = (note for note in said if "gpu_memory_utilization" in note)
    assert sampling.startswith("vLLM: ")
    assert share.startswith("vLLM: ")
    assert engine.loc["activations", "bytes"] > 100 * plain.loc["activations", "bytes"]
    assert engine.loc["context", "share"] > 0
    assert not any(name.startswith("reserved") for name in engine.index)


def test_what_fits_is_asked_of_each_runtime() -> None:
    """A plain call makes the logits of whole prompts, an engine those of the last tokens."""
    device = "RTX 4090"
    table = llmsim.size("Qwen/Qwen3-8B", context=8192, batch=3, hardware=device).table
    fits = table.drop_duplicates("runtime").set_index("runtime")
    assert fits["fits"].to_dict() == {"transformers": False, "vllm": True}
    logits = 3 * 8192 * 151_936 * 2
    assert fits.loc["transformers", "activations_bytes"] > logits
    assert pd.isna(fits.loc["vllm", "binds"])
    assert fits.loc["transformers", "binds"]
    assert table["prefill_s"].isna().tolist() == [True, True, False]


def test_the_largest_sizes_under_transformers_fit_and_no_more_would() -> None:
    report = llmsim.trace("gpt2", dtype="fp16", context=64, hardware="T4", runtime="transformers")
    (row,) = report.costing.fits.to_dict("records")
    assert row["longest_context"] == 1024
    planner, device = report.costing.planner, accelerators.find("T4")
    assert planner is not None
    for more, fits in ((0, True), (1, False)):
        setup = report.costing.setup
        sized = type(setup)(batch=row["largest_batch"] + more, context=setup.context)
        found = planner.fit(sized, device, "transformers", remedies=False)
        assert found is not None
        assert found.fits is fits
    assert len(planner._traces) < 20, "a search that guesses well traces little"


# which executions there are


@pytest.mark.parametrize("name", [*small_models.ENCODERS, *small_models.ENCODER_DECODERS, "mamba"])
def test_a_model_that_an_engine_does_not_cover_has_no_rows_of_it(name: str) -> None:
    config = small_models.CONFIGS[name]()
    report = llmsim.trace(config, context=7, hardware="H100")
    for table in (report.latency, report.times, report.costing.fits, report.memory):
        assert set(table["runtime"]) == {"transformers"}
    (why,) = (remark for remark in report.remarks() if remark.startswith("no rows of vLLM"))
    assert "model" in why
    assert "flops_vllm" not in report.summary.index
    sizing = llmsim.size(config, context=7, hardware="H100")
    assert set(sizing.table["runtime"]) == {"transformers"}
    assert any(note.startswith("no rows of vLLM") for note in sizing.notes)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral", "gemma2", "opt"])
def test_decoders_with_keys_and_values_are_covered(name: str) -> None:
    for phase in ("prefill", "decode"):
        assert engine_gap(llmsim.trace(small_models.CONFIGS[name](), phase=phase).trace) is None


def test_recurrent_states_beside_keys_and_values_are_not_covered() -> None:
    """Their scans would be priced as transformers writes them out, which no engine runs."""
    from transformers import RecurrentGemmaConfig

    config = RecurrentGemmaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=64,
    )
    report = llmsim.trace(config, context=9, hardware="H100")
    assert set(report.latency["runtime"]) == {"transformers"}
    assert "recurrent states" in str(engine_gap(report.trace))


def test_a_pass_on_given_inputs_is_a_plain_call() -> None:
    import torch

    net = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    given = torch.zeros(4, 64, dtype=torch.bfloat16)
    report = llmsim.trace(net, inputs=given, hardware="H100")
    assert executions(report.latency) == EXECUTIONS[:2]
    assert set(report.memory["runtime"]) == {"transformers"}
    said = said_by(lambda: llmsim.trace(net, inputs=given, runtime="vllm"))
    assert said.startswith("runtime must be transformers for Linear, not 'vllm'")


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        ("A100", EXECUTIONS),
        ("MI300X", EXECUTIONS),
        ("EPYC 9654", EXECUTIONS[:1]),
        ("TPU v5e", EXECUTIONS[2:]),
        ("Gaudi 3", EXECUTIONS[2:]),
        ("M4 Max (40-core)", EXECUTIONS[2:]),
    ],
)
def test_a_device_has_the_executions_that_are_priced_on_it(
    device: str, shown: list[tuple[str, str]]
) -> None:
    report = llmsim.trace(small_models.llama(), context=8, dtype="bf16", hardware=device)
    assert executions(report.latency) == shown
    for execution in EXECUTIONS:
        is_told = any(
            remark.startswith(f"no rows of {name} on")
            for remark in report.remarks()
            for name in [_NAMES[execution]]
        )
        assert is_told is (execution not in shown)


_NAMES = dict(
    zip(EXECUTIONS, ("transformers, eager", "transformers, CUDA graph", "vLLM"), strict=True)
)


def test_a_cpu_has_no_context_and_its_allocator_no_segments() -> None:
    report = llmsim.trace(small_models.llama(), context=8, hardware="EPYC 9654")
    assert report.memory.loc["context", "bytes"] == 0
    assert not any(name.startswith("reserved") for name in report.memory.index)


def test_a_runtime_whose_times_are_unknown_leaves_those_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LlmsimError("a figure is missing")

    monkeypatch.setattr(f"{transformers_time.__module__}.transformers_time", fail)
    config = small_models.llama()
    report = llmsim.trace(config, context=8, hardware="H100")
    assert executions(report.latency) == EXECUTIONS[2:]
    assert report.costing.first_execution.runtime == "vllm"
    said = [remark for remark in report.remarks() if "a figure is missing" in remark]
    assert len(said) == 2
    assert set(report.memory["runtime"]) == {"transformers", "vllm"}
    with pytest.raises(LlmsimError, match="a figure is missing"):
        llmsim.trace(config, context=8, hardware="H100", runtime="transformers")


def test_a_gpu_of_this_machine_is_priced_by_its_own_constants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibration = torch_calibration()
    given: list[Any] = []

    def record(*args: Any, **keywords: Any) -> Any:
        given.append(args[3])
        return transformers_time(*args, **keywords)

    monkeypatch.setattr(device_passes, "device_of", lambda name: (H100, calibration))
    monkeypatch.setattr(f"{transformers_time.__module__}.transformers_time", record)
    report = llmsim.trace(small_models.llama(), context=8, hardware="H100")
    assert executions(report.latency) == EXECUTIONS
    assert given
    assert all(each is calibration for each in given)


# front doors

WRONG = {
    "gpt2 --hardware H100 --runtime sglang": (
        "runtime must be one of transformers, vllm, all, not 'sglang'"
    ),
    "gpt2 --hardware H100 --runtime vllm --launch eager": (
        "launch must be graph under runtime vllm, not 'eager'"
    ),
    "bert-base-uncased --memory --runtime vllm": (
        "runtime must be transformers for bert-base-uncased, not 'vllm': the model does not "
        "generate token by token"
    ),
    "bert-base-uncased --hardware all --runtime vllm": "runtime must be transformers",
    "t5-small --hardware H100 --runtime vllm": (
        "runtime must be transformers for google-t5/t5-small, not 'vllm': the model has an encoder"
    ),
    "gpt2 --hardware local-cpu --runtime vllm": (
        "runtime must be transformers for a CPU, not 'vllm'"
    ),
    "gpt2 --hardware 'EPYC 9654' --launch graph": (
        "launch must be eager for gpt2 on EPYC 9654, not 'graph': a CPU has no CUDA graph"
    ),
    "gpt2 --hardware 'TPU v5e' --runtime transformers": (
        "runtime must be vllm for gpt2 on TPU v5e, not 'transformers'"
    ),
    "gpt2 --hardware 'H100,TPU v5e' --launch eager": (
        "launch must be graph for gpt2 on TPU v5e, not 'eager'"
    ),
    "bert-base-uncased --hardware 'TPU v5e'": "hardware: no runtime is predicted for bert-base",
    "gpt2 --ops --runtime vllm": "--runtime vllm has no effect without --memory or --hardware",
}


@pytest.mark.parametrize("line", WRONG)
def test_the_magic_says_what_is_wrong_in_one_line(line: str) -> None:
    shell = InteractiveShell.instance(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("llmsim", line)
    assert str(caught.value).startswith(WRONG[line])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", WRONG)
def test_the_terminal_says_it_too(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    assert main(shlex.split(line)) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"llmsim: {WRONG[line]}")
    assert found.err.count("\n") == 1


def test_calls_in_python_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = small_models.bert()
    for call in (
        lambda: llmsim.trace(bert, hardware="H100", runtime="vllm"),
        lambda: llmsim.trace(bert, runtime="vllm"),
        lambda: llmsim.size(bert, hardware="H100", runtime="vllm", context=8),
        lambda: llmsim.size(bert, runtime="vllm", context=8),
    ):
        assert said_by(call).startswith("runtime must be transformers for")
    for call in (
        lambda: llmsim.trace("gpt2", hardware="H100", runtime="vllm", launch="eager"),
        lambda: llmsim.size("gpt2", hardware="H100", runtime="vllm", launch="eager"),
    ):
        assert said_by(call) == "launch must be graph under runtime vllm, not 'eager'"
    for wrong in ("sglang", 3, True, ["vllm"]):
        said = said_by(lambda wrong=wrong: llmsim.trace("gpt2", hardware="H100", runtime=wrong))
        assert said.startswith("runtime must be one of transformers, vllm, all, not")
        assert said_by(lambda wrong=wrong: llmsim.panel("gpt2", runtime=wrong)) == said
    monkeypatch.setattr(cuda_device, "cuda_name", lambda: None)
    monkeypatch.setattr(local_device, "_measured_cpu", pytest.fail)
    said = said_by(lambda: llmsim.size("gpt2", hardware="local", runtime="vllm"))
    assert said.startswith("runtime must be transformers for a CPU, not 'vllm'")


def test_every_device_at_once_leaves_out_what_a_device_lacks() -> None:
    """Only where no device at all has the execution is it a mistake."""
    sizing = llmsim.size(small_models.llama(), context=8, dtype="bf16", runtime="transformers")
    assert set(sizing.table["runtime"]) == {"transformers"}
    assert "TPU v5e" not in set(sizing.table["device"])
    assert any("TPU v3" in note and "transformers, eager" in note for note in sizing.notes)


def test_the_terminal_prints_a_row_for_each_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["distilgpt2", "--hardware", "H100", "--memory", "--context", "16"]
    assert main(line) == 0
    found = " ".join(capsys.readouterr().out.split())
    for words in (
        ": transformers, eager; transformers, CUDA graph; vLLM",
        "context 16 under transformers and vLLM",
        "Largest sizes that fit, by device and runtime",
    ):
        assert words in found


def test_a_refused_launch_gives_only_the_reasons_of_runtimes_that_are_there() -> None:
    """On a CPU an engine is missing too, which is not why a CUDA graph is."""
    for device in ("EPYC 9654", "local-cpu"):
        said = said_by(lambda name=device: llmsim.trace("gpt2", hardware=name, launch="graph"))
        assert said.endswith("not 'graph': a CPU has no CUDA graph")


def test_the_heading_names_what_the_rows_of_every_device_are_of() -> None:
    """The first device may lack what another has."""
    for devices in (["TPU v5e", "H100"], ["H100", "TPU v5e"]):
        report = llmsim.trace(small_models.llama(), context=8, dtype="bf16", hardware=devices)
        heading = next(each.title for each in report.content().parts if each.name == "hardware")
        named = heading.partition(": ")[2].split("; ")
        assert named == ["transformers, eager", "transformers, CUDA graph", "vLLM"]
        assert set(executions(report.latency)) == set(EXECUTIONS)


def test_a_device_that_cannot_compute_in_the_dtype_does_not_stop_a_comparison() -> None:
    options: dict[str, Any] = {"context": 8, "dtype": "bfloat16"}
    report = llmsim.trace(small_models.llama(), hardware=["T4", "H100"], **options)
    assert set(report.latency["device"]) == {"H100-SXM5-80GB"}
    assert set(report.costing.fits["device"]) == {"T4", "H100-SXM5-80GB"}
    assert report.costing.first == "H100-SXM5-80GB"
    assert len(report.times) == 3 * len(report.ops)
    told = [remark for remark in report.remarks() if "on T4" in remark]
    assert len(told) == 3
    assert all("fp16" in remark for remark in told)
    with pytest.raises(LlmsimError, match="T4 computes in"):
        _ = llmsim.trace(small_models.llama(), hardware="T4", **options).latency


def test_stored_weights_under_transformers_have_a_note_on_what_widens_them() -> None:
    def says(**options: Any) -> bool:
        report = llmsim.trace(small_models.llama(), context=8, hardware="H100", **options)
        return any("widen them were not measured" in remark for remark in report.remarks())

    assert says(weight_dtype="int4")
    assert not says(weight_dtype="int4", runtime="vllm")
    assert not says()


def test_notes_on_an_engine_stand_beside_its_rows_alone() -> None:
    given = {"context": 8, "hardware": "H100", "attn": "eager"}
    config = small_models.llama()
    for runtime, is_told in (("vllm", True), ("transformers", False), (None, True)):
        report = llmsim.trace(config, runtime=runtime, **given)
        told = [remark for remark in report.remarks() if "no score matrix" in remark]
        assert bool(told) is is_told
        assert all(remark.startswith("vLLM: ") for remark in told)


def test_a_line_and_a_call_carry_the_runtime() -> None:
    request = parse_line("gpt2 --memory --hardware H100 --runtime vllm").request
    assert parse_line(magic_line(request).removeprefix("%llmsim ")).request == request
    assert "runtime='vllm'" in python_call(request)
