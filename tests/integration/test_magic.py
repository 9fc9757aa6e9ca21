"""`%llmsim` in a real IPython shell."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from tests.helpers.shells import NO_HISTORY


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    made = InteractiveShell.instance(config=NO_HISTORY)
    made.run_line_magic("load_ext", "llmsim_magic")
    made.Completer.use_jedi = False
    yield made
    InteractiveShell.clear_instance()


def _run(shell: InteractiveShell, cell: str) -> Any:
    """The cell's captured output; a failing cell raises."""
    with capture_output() as captured:
        result = shell.run_cell(cell, store_history=True)
    result.raise_error()
    return captured


def test_the_line_shows_its_views_and_returns_a_report(shell: InteractiveShell) -> None:
    captured = _run(shell, "r = %llmsim distilgpt2 --ops --summary --deps --topological")
    (output,) = [o for o in captured.outputs if "Summary" in o.data.get("text/html", "")]
    page = output.data["text/html"]
    assert page.count('src="data:image/svg+xml;base64,') == 2
    assert "transformer.h.0.attn.c_attn" in page
    report = shell.user_ns["r"]
    for name in ("ops", "modules", "edges", "kernels", "summary", "shapes"):
        assert isinstance(getattr(report, name), pd.DataFrame)
    assert set(report.graphs) == {"deps", "topological"}
    assert all("<svg" in svg for svg in report.graphs.values())


def test_a_line_without_words_shows_the_usage_in_a_terminal(shell: InteractiveShell) -> None:
    with capture_output() as captured:
        result = shell.run_cell("%llmsim")
    assert result.success
    assert "usage: %llmsim" in captured.stdout


def test_an_answer_is_shown_once(shell: InteractiveShell) -> None:
    captured = _run(shell, "%llmsim distilgpt2")
    pages = [o for o in captured.outputs if "Summary" in o.data.get("text/html", "")]
    assert len(pages) == 1


def test_a_loop_shows_every_answer(shell: InteractiveShell) -> None:
    captured = _run(shell, "for name in ['distilgpt2', 'gpt2']:\n    %llmsim {name}")
    pages = [o.data.get("text/html", "") for o in captured.outputs]
    titles = [page for page in pages if "Summary" in page]  # and not what is in progress
    assert "Summary of distilgpt2" in titles[0]
    assert "Summary of gpt2:" in titles[-1]


def test_a_semicolon_keeps_it_quiet_and_a_comment_is_dropped(shell: InteractiveShell) -> None:
    captured = _run(shell, "q = %llmsim distilgpt2 --phase decode  # the cached step\n")
    assert captured.outputs
    captured = _run(shell, "q = %llmsim distilgpt2 --phase decode ;")
    assert not captured.outputs
    assert shell.user_ns["q"].trace.workload.phase == "decode"


def test_a_quiet_report_is_shown_when_it_is_asked_for(shell: InteractiveShell) -> None:
    assert not _run(shell, "%llmsim distilgpt2 -o q ;").outputs
    (output,) = _run(shell, "q").outputs
    assert "Summary of distilgpt2" in output.data["text/html"]


def test_o_keeps_the_report_under_a_name(shell: InteractiveShell) -> None:
    _run(shell, "%llmsim distilgpt2 -o kept")
    assert shell.user_ns["kept"].summary.loc["parameters", "value"] == 81912576


def test_multi_config_is_a_column_for_each_of_eight_workloads(shell: InteractiveShell) -> None:
    _run(shell, "m = %llmsim Qwen/Qwen3-0.6B --multi-config")
    shapes = shell.user_ns["m"].shapes
    workloads = [f"{p} {b}×{c}" for p in ("prefill", "decode") for b in (1, 16) for c in (1, 128)]
    assert [name for name in shapes if name in workloads] == workloads
    decode = shapes.set_index(shapes["path"] + " " + shapes["op"])["decode 1×128"]
    assert decode["model.layers.0.mlp.up_proj Linear"] == "[1, 1, 1024] → [1, 1, 3072]"
    attention = "model.layers.0.self_attn scaled_dot_product_attention"
    assert "[1, 8, 129, 128]" in decode[attention]
    assert shapes["changes"].all()


def test_a_variable_holding_a_config_a_model_or_a_name_is_taken(shell: InteractiveShell) -> None:
    _run(
        shell,
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)\n"
        "model = GPT2LMHeadModel(config)\n"
        "name = 'distilgpt2'\n"
        "a = %llmsim config\n"
        "b = %llmsim model\n"
        "c = %llmsim name\n",
    )
    assert shell.user_ns["a"].trace.model.origin == "config object"
    assert shell.user_ns["b"].trace.model.origin == "live module"
    assert shell.user_ns["c"].trace.model.name == "distilgpt2"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%llmsim gpt2 --bogus", "--bogus"),
        ("%llmsim gpt2 --batch 0", "--batch"),
        ("number = 3\n%llmsim number", "number"),
        ("import torch\nnet = torch.nn.Linear(2, 2)\n%llmsim net", "inputs="),
        ("%llmsim gpt2 --explain nowhere", "nowhere"),
        ("%llmsim gpt2 'unclosed", "unclosed"),
    ],
)
def test_a_mistake_is_a_line_without_traceback_and_the_next_cell_works(
    shell: InteractiveShell, cell: str, said: str
) -> None:
    with capture_output() as captured:
        result = shell.run_cell(cell)
    assert not result.success
    told = captured.stdout + captured.stderr
    assert said in told
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if line.strip()]) == 1
    _run(shell, "%llmsim distilgpt2")


def test_csv_writes_into_the_folder(shell: InteractiveShell, tmp_path: Path) -> None:
    captured = _run(shell, f"%llmsim distilgpt2 --ops --csv {tmp_path}")
    assert (tmp_path / "distilgpt2.prefill.b1.c128.ops.csv").exists()
    assert f"Wrote 3 files to {tmp_path}/" in captured.stdout


def test_config_sets_what_lines_leave_out(shell: InteractiveShell) -> None:
    try:
        _run(shell, "%config LLMSim.phase = 'decode'\n%config LLMSim.batch = '3'")
        _run(shell, "d = %llmsim distilgpt2 ;")
        _run(shell, "e = %llmsim distilgpt2 --phase prefill ;")
    finally:
        _run(shell, "%config LLMSim.phase = ''\n%config LLMSim.batch = ''")
    decode, prefill = shell.user_ns["d"].trace.workload, shell.user_ns["e"].trace.workload
    assert (decode.phase, decode.batch) == ("decode", 3)
    assert (prefill.phase, prefill.batch) == ("prefill", 3)


def test_config_refuses_what_the_option_would(
    shell: InteractiveShell, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_output() as captured:
        shell.run_cell("%config LLMSim.batch = '0'")
    assert "must be at least 1, not '0'" in caplog.text
    assert "Traceback" not in captured.stdout + captured.stderr
    assert _run(shell, "f = %llmsim distilgpt2").outputs


def test_config_lists_the_options(shell: InteractiveShell) -> None:
    assert "LLMSim.attn" in _run(shell, "%config LLMSim").stdout


@pytest.mark.parametrize("option", ["--batch 1,2", "--phase both", "--context 8,9", "--csv out"])
def test_a_panel_drops_no_option_in_silence(shell: InteractiveShell, option: str) -> None:
    with capture_output() as captured:
        result = shell.run_cell(f"%llmsim distilgpt2 --panel {option}")
    assert not result.success
    assert option.split(maxsplit=1)[0] in captured.stdout + captured.stderr


def test_without_a_notebook_a_panel_says_what_to_do(shell: InteractiveShell) -> None:
    with capture_output() as captured:
        shell.run_cell("%llmsim distilgpt2 --panel")
    assert "needs a notebook" in captured.stdout + captured.stderr


@pytest.mark.slow
def test_a_terminals_ipython_answers_in_text(tmp_path: Path) -> None:
    lines = (
        "%load_ext llmsim_magic\n%llmsim\nr = %llmsim distilgpt2 --summary\nprint(r.ops.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--quick"],
        input=lines,
        capture_output=True,
        text=True,
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        check=True,
    )
    assert "usage: %llmsim" in done.stdout
    assert "81.9 M" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def _completions(shell: InteractiveShell, line: str) -> list[str]:
    with provisionalcompleter():
        return [c.text for c in shell.Completer.completions(line, len(line))]


def test_tab_completes_options_values_and_models(shell: InteractiveShell) -> None:
    completions = partial(_completions, shell)
    assert "--multi-config" in completions("%llmsim gpt2 --mul")
    assert "decode" in completions("%llmsim gpt2 --phase d")
    assert "Qwen/Qwen3-0.6B" in completions("%llmsim Qwen/Qwen3-0")
    assert "gpt2-medium" in completions("r = %llmsim gpt2-")
    assert "--hardware=H100-SXM5-80GB" in completions("%llmsim gpt2 --hardware=h100")


def test_tab_completes_lists_of_devices(shell: InteractiveShell) -> None:
    completions = partial(_completions, shell)
    further = completions("%llmsim gpt2 --hardware L4,")
    assert "L4,T4" in further
    assert "L4,L4" not in further
    assert completions("%llmsim gpt2 --hardware L4,T") == ["L4,T4"] + [
        name for name in further if name.startswith("L4,T") and name != "L4,T4"
    ]
    assert "vllm,transformers" not in completions("%llmsim gpt2 --runtime vllm,")


def test_tab_completes_the_paths_of_the_last_model(shell: InteractiveShell) -> None:
    completions = partial(_completions, shell)
    _run(shell, "%llmsim distilgpt2 --context 8;")
    every = completions("%llmsim distilgpt2 --explain ")
    assert {"transformer.h.0.mlp.c_fc", "lm_head"} <= set(every)
    assert completions("%llmsim distilgpt2 --explain transformer.h.5.mlp.c_f") == [
        "transformer.h.5.mlp.c_fc"
    ]
    by_part = completions("%llmsim distilgpt2 --explain=c_at")
    assert "--explain=transformer.h.3.attn.c_attn" in by_part
