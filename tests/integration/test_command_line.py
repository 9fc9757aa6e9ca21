"""The command line prints the same answers as text, and one line per mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from llmsim_magic.__main__ import main
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views.safe_files import MANIFEST

MISTAKES = [
    ("no/such-model", ["no/such-model"]),
    ("Qwen/Qwen3-0.6", ["Qwen/Qwen3-0.6", "Qwen/Qwen3-0.6B"]),
    ("gpt2 --frobnicate", ["--frobnicate", "--help"]),
    ("gpt2 --batch 0", ["--batch", "0", "1"]),
    ("gpt2 --context -5", ["--context", "-5", "1"]),
    ("gpt2 --batch abc", ["--batch", "abc", "whole number"]),
    ("gpt2 --batch", ["--batch"]),
    ("gpt2 --phase foo", ["foo", "prefill", "decode", "both"]),
    ("gpt2 --dtype int3", ["int3", "bfloat16"]),
    ("gpt2 --attn flash", ["flash", "sdpa", "eager"]),
    ("gpt2 --context 1025", ["1025", "1024"]),
    ("gpt2 --phase decode --context 1024", ["1024", "1023"]),
    ("bert-base-uncased --phase decode", ["bert-base-uncased", "decode does not exist"]),
    ("gpt2 --explain transformer.h.0.mpl", ["transformer.h.0.mpl", "transformer.h.0.mlp"]),
    ("gpt2 --model gpt2-medium", ["gpt2", "gpt2-medium"]),
    ("gpt2 --csv /dev/null/here", ["/dev/null/here"]),
    ("gpt2 --batch 99999999999", ["99999999999"]),
    ("./nowhere", ["./nowhere", "does not exist"]),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub counts as off, whatever the machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("line", "named"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_value_and_the_legal_ones(
    line: str, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1
    for word in named:
        assert word in told.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", None, "config.json"),
        ("broken", "{'model_type': 1", "JSON"),
        ("list", "[1, 2]", "JSON object"),
        ("typeless", "{}", "model_type"),
        ("unknown", '{"model_type": "nonesuch"}', "nonesuch"),
        ("refused", '{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_a_folder_that_holds_no_model_is_told_in_one_line(
    name: str,
    content: str | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert said in error


def test_every_view_at_once_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    views = ["--ops", "--summary", "--deps", "--topological", "--multi-config"]
    assert main(["distilgpt2", *views]) == 0
    text = capsys.readouterr().out
    for word in ("transformer.h.0–5 ×6", "attn.c_attn", "81.9 M", "rank", "decode 16×128"):
        assert word in text


def test_a_context_beyond_a_rotary_models_declared_maximum_is_only_remarked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["HuggingFaceTB/SmolLM2-135M", "--context", "9000"]) == 0
    assert "9,000 tokens exceed the model's maximum of 8,192 tokens" in capsys.readouterr().out


def test_csv_writes_every_table_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["distilgpt2", "--ops", "--deps", "--topological", "--multi-config", "--csv"]
    assert main([*line, str(tmp_path / "out")]) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    stem = "distilgpt2.prefill.b1.c128"
    of_one = {f"{name}.csv" for name in ("ops", "modules", "kernels", "edges", "topological")}
    of_all = {f"distilgpt2.{name}.csv" for name in ("shapes", "workloads", "sweep_ops")}
    graphs = {f"{v}.{end}" for v in ("deps", "topological") for end in ("svg", "json")}
    assert written == {f"{stem}.{name}" for name in of_one | graphs} | of_all | {MANIFEST}
    assert f"Wrote {len(written) - 1} files to {tmp_path / 'out'}/" in capsys.readouterr().out
    ops = pd.read_csv(tmp_path / "out" / f"{stem}.ops.csv", index_col="order")
    assert ops.index.tolist() == list(range(len(ops)))
    assert ops.loc[0, "path"] == "transformer.wte"


def test_a_local_config_and_its_folder_are_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmsim_magic.catalog import models

    (tmp_path / "config.json").write_text(json.dumps(models.entries()["distilgpt2"].config))
    texts = []
    for given in (tmp_path, tmp_path / "config.json"):
        assert main([str(given), "--ops"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_help_is_shown_where_no_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "--multi-config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "stream"),
    [
        ([], "stdout"),
        (["--help"], "stdout"),
        (["gpt2", "--context", "4"], "stdout"),
        (["gpt2", "--batch", "0"], "stderr"),
    ],
)
@pytest.mark.slow
def test_a_closed_pipe_ends_the_process_silently(words: list[str], stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: writer}
    try:
        command = [sys.executable, "-m", "llmsim_magic", *words]
        done = subprocess.run(command, check=False, **streams)  # type: ignore[call-overload]
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert not done.stdout
    assert not done.stderr


def _printed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line.split()) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "gpt2", "deepseek-ai/DeepSeek-V3"])
def test_no_line_is_wider_than_the_terminal(
    model: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    views = " ".join(f"--{name}" for name in VIEWS)
    text = _printed(f"{model} {views} --hardware H100", capsys)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_identical_layers_are_one_block_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = _printed("Qwen/Qwen3-0.6B --ops", capsys)
    assert "model.layers.0–27 ×28" in text
    assert "510 operators" in text
    assert text.count("mlp.up_proj") == 1
    assert len(text.splitlines()) < 70


def test_the_layers_that_differ_are_blocks_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = _printed("deepseek-ai/DeepSeek-V3 --ops", capsys)
    assert "model.layers.0–2 ×3" in text
    assert "model.layers.3–60 ×58" in text


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colour_is_for_a_terminal_that_wants_it(
    environment: dict[str, str],
    is_coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ("\x1b[" in _printed("gpt2 --summary", capsys)) is is_coloured


def test_the_text_of_a_notebook_is_80_columns_without_colour() -> None:
    import llmsim_magic as llmsim

    report = llmsim.trace("gpt2", hardware="H100")
    for text in (repr(report), report._repr_mimebundle_()["text/plain"]):
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
