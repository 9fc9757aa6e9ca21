"""The tables of a comparison: quantities and modules of both models."""

import json
from dataclasses import replace

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.report_tables import ReportTables
from llmsim_magic.views.tables.differences import differences_table
from tests.helpers import small_models
from tests.helpers.difference_rows import (
    trace_of,
)


def test_the_table_has_both_models_of_each_row() -> None:
    table = differences_table(trace_of(small_models.llama()), trace_of(small_models.qwen3()))
    rows = table.set_index("path_second")
    layer = "model.layers.0–1"
    q = rows.loc[f"{layer}.self_attn.q_proj"]  # 4 heads: of 16 in Llama, of 32 in Qwen3
    assert q["status"] == "changed"
    assert q["path_first"] == f"{layer}.self_attn.q_proj"
    assert q["change"] == "weight [64, 64] → [128, 64]"
    assert (q["type_first"], q["type_second"]) == ("Linear", "Linear")
    assert (q["layers_first"], q["layers_second"]) == (2, 2)
    assert (q["params_first"], q["params_second"]) == (4096, 8192)
    assert (q["weight_shapes_first"], q["weight_shapes_second"]) == ([(64, 64)], [(128, 64)])
    assert q["layer_indices_first"] == [0, 1]
    new = rows.loc[f"{layer}.self_attn.q_norm"]
    assert new["status"] == "added"
    of_first = [name for name in table if name.endswith("_first")]
    assert all(pd.isna(new[name]) for name in of_first)
    assert new["params_second"] == new["params_total_second"] == 32
    mlp = rows.loc[f"{layer}.mlp"]
    assert (mlp["params_second"], mlp["params_total_second"]) == (0, 3 * 64 * 96)


def test_a_report_has_the_difference_and_its_files() -> None:
    report = answer(parse_line("distilgpt2 --compare gpt2 --context 8").request)
    name = "distilgpt2.prefill.b1.c8.beside.gpt2.differences.csv"
    lines = report.files()[name].decode("utf-8-sig").splitlines()
    assert len(lines) == 1 + len(report.differences)
    (written,) = (row for row in json.loads(report.json())["tables"]["differences"]
                  if row["status"] != "same")  # fmt: skip
    assert written["path_first"] == "transformer.h.0–5"
    assert written["path_second"] == "transformer.h.0–11"
    assert written["layer_indices_second"] == list(range(12))
    assert written["change"] == "layers ×6 → ×12"


@pytest.mark.parametrize("name", ["differences", "comparison"])
def test_without_a_second_model_there_is_no_difference(name: str) -> None:
    report = llmsim.trace(small_models.qwen3(), context=4)
    with pytest.raises(InvalidValue, match=f"{name} is not available.*--compare MODEL"):
        getattr(report, name)


def test_quantities_are_exact_with_ratio_and_difference() -> None:
    table = answer(parse_line("distilgpt2 --compare gpt2 --context 8").request).comparison
    # gpt2: 12 layers of 12·768² + 13·768; embeddings of 50257 tokens and 1024 positions; a norm
    layer = 12 * 768**2 + 13 * 768
    rest = (50257 + 1024) * 768 + 2 * 768
    row = table.loc["parameters"]
    assert (row["distilgpt2"], row["gpt2"]) == (6 * layer + rest, 12 * layer + rest)
    assert type(row["gpt2"]) is int
    assert row["difference"] == 6 * layer
    assert row["ratio"] == (12 * layer + rest) / (6 * layer + rest)
    cache = table.loc["cache_bytes"]  # keys and values of 8 tokens in float32
    assert (cache["distilgpt2"], cache["gpt2"]) == (6 * 8 * 768 * 2 * 4, 12 * 8 * 768 * 2 * 4)
    assert (cache["ratio"], cache["difference"]) == (2, 6 * 8 * 768 * 2 * 4)
    expected = {"parameters", "parameters_active", "parameter_bytes", "cache_bytes", "flops",
                "bytes_read", "bytes_written", "arithmetic_intensity", "memory_bytes"}  # fmt: skip
    assert expected <= set(table.index)


def _beside(first: Trace, second: Trace) -> pd.DataFrame:
    return ReportTables(trace=first, compared=ReportTables(trace=second)).comparison


@pytest.mark.parametrize("name", ["unit", "ratio", "difference", "quantity", "gpt2"])
def test_models_with_the_name_of_another_column_get_one_of_their_own(name: str) -> None:
    trace = trace_of(small_models.gpt2())
    named = replace(trace, model=replace(trace.model, name=name))
    table = _beside(named, named)
    assert len({*table}) == len([*table]) == 5
    assert list(table)[2] in (f"{name} (2)", f"{name} (3)")
    assert set(table["ratio"]) == {1}
    assert set(table["difference"]) == {0}


def test_a_quantity_that_the_first_model_has_not_has_no_ratio() -> None:
    table = _beside(trace_of(small_models.bert()), trace_of(small_models.gpt2()))
    cache = table.loc["cache_bytes"]
    size = 4 * 2 * 2 * 64 * 4  # 4 tokens, 2 layers, keys and values, 64 wide, float32
    assert (cache.iloc[1], cache.iloc[2], cache["difference"]) == (0, size, size)
    assert pd.isna(cache["ratio"])
