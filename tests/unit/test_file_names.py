"""Exported files: names after model and workload, and CSV as a spreadsheet reads it."""

import io
from pathlib import Path

import pandas as pd
import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.csv_export import to_csv
from llmsim_magic.views.file_names import file_stem
from llmsim_magic.views.safe_files import MANIFEST, written_message
from tests.helpers import small_models


def _answer(line: str) -> Report:
    return answer(parse(line.split()).request)


@pytest.fixture(scope="module")
def decode() -> Trace:
    return llmsim.trace("Qwen/Qwen3-0.6B", phase="decode", batch=2, context=8).trace


def _stem(trace: Trace, name: str) -> str:
    from dataclasses import replace

    return file_stem(replace(trace, model=replace(trace.model, name=name)))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B.decode.b2.c8"),
        ("someone/Qwen3-0.6B", "someone--Qwen3-0.6B.decode.b2.c8"),
        ("someone/Qwen3-0.6B@main", "someone--Qwen3-0.6B-main.decode.b2.c8"),
        ("/models/a/llama", "a--llama.decode.b2.c8"),
        ("../llama", "llama.decode.b2.c8"),
        ("con", "model-con.decode.b2.c8"),
        ("/", "model.decode.b2.c8"),
    ],
)
def test_files_are_named_after_model_and_workload(decode: Trace, name: str, stem: str) -> None:
    assert _stem(decode, name) == stem


def test_a_pass_on_given_inputs_has_no_sizes_in_its_name() -> None:
    trace = llmsim.trace(torch.nn.Linear(2, 2), inputs=torch.ones(1, 2)).trace
    assert file_stem(trace) == "Linear.forward"


def test_models_and_workloads_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    lines = ("distilgpt2 --ops", "gpt2 --ops", "gpt2 --ops --phase decode", "gpt2 --ops --batch 3")
    for line in lines:
        _answer(f"{line} --context 8 --csv {tmp_path}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) == 3 * len(lines) + 1
    again = _answer(f"gpt2 --ops --context 8 --csv {tmp_path}")
    assert [file.parent for file in again.written] == [tmp_path] * 3
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert MANIFEST in before


def test_a_comparison_is_named_after_both(tmp_path: Path) -> None:
    report = _answer("distilgpt2 --compare gpt2 --context 8")
    assert "distilgpt2.prefill.b1.c8.beside.gpt2.comparison.csv" in report.files()


def test_a_table_is_utf_8_that_excel_knows_with_shapes_written_one_way() -> None:
    sweep = llmsim.sweep(small_models.gpt2(), batch=1, context=4, phase="prefill")
    report = llmsim.trace(small_models.gpt2(), context=4)
    content = to_csv(report.ops)
    assert content.startswith(b"\xef\xbb\xbf")
    read = pd.read_csv(io.BytesIO(content), index_col="order", keep_default_na=False)
    shapes = pd.read_csv(io.BytesIO(to_csv(sweep.shapes)), keep_default_na=False)
    for row, both in zip(read.itertuples(), shapes["prefill 1×4"], strict=True):
        assert both == f"{row.input_shapes or 'none'} → {row.output_shapes or 'none'}"
    edges = pd.read_csv(io.BytesIO(to_csv(report.edges)))
    assert edges["shape"].str.fullmatch(r"\[[\d, ]*\]").all()
    assert read["depends_on"].str.fullmatch(r"(\d+(, \d+)*)?").all()


def test_the_message_counts_the_files() -> None:
    assert written_message([Path("out/a.csv")]) == "Wrote 1 file to out/"
    assert written_message([Path("a.csv"), Path("b.csv")]) == "Wrote 2 files to ./"
