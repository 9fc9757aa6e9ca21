"""A report as JSON: the documented schema, every row and digit, and nothing else on the output."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.notebook.arguments import parse
from llmsim_magic.notebook.panel.panel import Panel
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.json_export import SCHEMA, json_schema, records
from tests.helpers.shells import NO_HISTORY

LINES = [
    "distilgpt2",
    "distilgpt2 --ops --deps --topological --costs --memory --hardware H100",
    "distilgpt2 --multi-config",
    "distilgpt2 --compare gpt2 --hardware H100",
    "distilgpt2 --explain transformer.h.0.mlp",
    "distilgpt2 --hardware all --context 16",
    "bert-base-uncased --phase both --batch 1,2 --context 8",
]


def _document(line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*line.split(), "--json", "-"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert len(out.splitlines()) == 1
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("line", LINES)
def test_the_output_is_one_document_of_the_published_schema(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _document(line, capsys)
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    assert document["schema"] == SCHEMA


def test_the_schema_refuses_what_is_not_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    document = _document("distilgpt2", capsys)
    for change in ({"schema": "llmsim/0"}, {"tables": {"ops": [1]}}, {"workloads": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": "llmsim/1"}, json_schema())


def test_tables_keep_every_row_name_and_digit() -> None:
    report = llmsim.trace("distilgpt2", context=16)
    document = json.loads(report.json())
    (summary,) = document["tables"].values()
    assert [row["quantity"] for row in summary] == report.summary.index.tolist()
    flops = next(row["value"] for row in summary if row["quantity"] == "flops")
    assert flops == report.summary.loc["flops", "value"]
    ops = records(report.ops)
    assert list(ops[0]) == ["order", *report.ops.columns]
    assert [row["path"] for row in ops] == report.ops["path"].tolist()
    assert ops[0]["layer"] is None
    assert ops[0]["input_shapes"] == [[1, 16]]


def test_a_missing_value_is_null_and_large_integers_are_exact() -> None:
    table = pd.DataFrame(
        {
            "a": pd.array([pd.NA, 2**62 + 1], dtype="Int64"),
            "b": [float("nan"), float("inf")],
            "c": [None, pd.NA],
            "d": [[(1, 2)], ()],
            "e": pd.array([True, pd.NA], dtype="boolean"),
        }
    )
    first, second = json.loads(json.dumps(records(table), allow_nan=False))
    assert first == {"a": None, "b": None, "c": None, "d": [[1, 2]], "e": True}
    assert second == {"a": 2**62 + 1, "b": None, "c": None, "d": [], "e": None}


def test_the_file_is_written_and_the_report_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    assert main(["distilgpt2", "--json", str(file)]) == 0
    assert "Wrote " in capsys.readouterr().out
    assert json.loads(file.read_text())["model"]["name"] == "distilgpt2"
    assert main(["distilgpt2", "--json", str(file)]) == 0  # our own file is replaced
    file.write_text("mine")
    assert main(["distilgpt2", "--json", str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["distilgpt2", "--json", str(file), "--overwrite"]) == 0


def test_a_folder_that_cannot_be_written_is_a_mistake_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["no-such/model", "--json", "/dev/null/x/report.json"]) == 2
    assert "/dev/null/x" in capsys.readouterr().err


def test_both_workloads_and_failures_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    document = _document("distilgpt2 --batch 1,2 --context 8 --phase both", capsys)
    sizes = {(each["phase"], each["batch"]) for each in document["workloads"]}
    assert sizes == {(phase, batch) for phase in ("prefill", "decode") for batch in (1, 2)}
    assert document["workloads"][0] == {"phase": "prefill", "batch": 1, "context": 8}


def test_the_magic_prints_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell.instance(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    capsys.readouterr()
    shell.run_line_magic("llmsim", "distilgpt2 --json -")
    assert json.loads(capsys.readouterr().out)["views"] == ["summary"]


def test_a_panel_refuses_to_write_json() -> None:
    with pytest.raises(InvalidValue, match="--json - cannot be combined with the panel"):
        Panel(parse(["distilgpt2", "--json", "-"]).request)
