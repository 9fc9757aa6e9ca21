"""Each cause of a wrong end that the fuzzers found: one line instead, or the right number."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.capture.kernels.failure_reason import failure_reason
from llmsim_magic.capture.meta import small_buffers
from llmsim_magic.capture.meta.partial_evaluation import CannotEvaluate
from llmsim_magic.notebook.variables import find_model, is_model
from llmsim_magic.records.errors import InvalidValue, LlmsimError, describe, shorten
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.request import Request
from llmsim_magic.views.tables.columns import integers
from tests.helpers import small_models
from tests.helpers.bad_values import (
    ODD,
    InstanceOfRaisingMetaclass,
    NamedBadValue,
    RaisesOnEveryAccess,
    real,
)
from tests.helpers.outcomes import check_outcome
from tests.helpers.shells import NO_HISTORY

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1}


def error_line(ask: Callable[[], Any]) -> str:
    """The line that it is refused with."""
    line = check_outcome(ask)
    assert isinstance(line, str)
    return line


def written(folder: Path, content: dict[str, Any] | bytes) -> str:
    """A folder whose config holds that."""
    if isinstance(content, dict):
        content = json.dumps(content).encode()
    (folder / "config.json").write_bytes(content)
    return str(folder)


def test_an_error_is_one_line_that_can_be_seen_whatever_it_quotes() -> None:
    assert str(LlmsimError("a\nb\x1b[31m\u202e\ud800")) == "a b\\x1b[31m\\u202e\\ud800"
    assert len(str(LlmsimError("x" * 10_000))) == 500


def test_a_value_that_cannot_be_shown_is_named_by_its_type() -> None:
    assert shorten(RaisesOnEveryAccess()) == "an object of type RaisesOnEveryAccess"
    assert "InstanceOfRaisingMetaclass" in str(
        InvalidValue.must_be("batch", InstanceOfRaisingMetaclass(), "a number")
    )


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"hardware": 0}, "hardware: '0' is not in the catalogue"),
        ({"hardware": NamedBadValue("endless")}, "at most 100,000 values"),
        ({"hardware": NamedBadValue("a tensor's number")}, "one value or several"),
        ({"base": []}, "base must be True or False"),
        ({"replay": "no"}, "replay must be True or False"),
        ({"attn": NamedBadValue("NA")}, "attn must be one of"),
        ({"phase": [["prefill"]]}, "phase must be one of"),
        ({"batch": NamedBadValue("tensor")}, "must be a whole number"),
        ({"batch": NamedBadValue("nasty")}, "batch must be a whole number"),
        ({"context": NamedBadValue("of a nasty type")}, "must be a whole number"),
        ({"dtype": NamedBadValue("nasty")}, "not an object of type RaisesOnEveryAccess"),
        ({"weight_dtype": NamedBadValue("nasty")}, "not an object of type RaisesOnEveryAccess"),
        ({"progress": 0}, "progress must be a function"),
    ],
)
def test_a_keyword_of_another_type_is_refused(keywords: dict[str, Any], said: str) -> None:
    given = {name: real(value) for name, value in keywords.items()}
    assert said in error_line(lambda: llmsim.trace("distilgpt2", **given))


def test_of_several_there_is_one_at_least() -> None:
    for name in ("batch", "context", "phase"):
        line = error_line(lambda name=name: llmsim.sweep("distilgpt2", **{name: []}))
        assert line == f"{name} must be one value or several, not []"
    assert "hardware must be one value or several" in error_line(
        lambda: llmsim.size("distilgpt2", hardware=[])
    )


def test_a_sweep_over_an_endless_batch_is_refused() -> None:
    line = error_line(lambda: llmsim.sweep("distilgpt2", batch=itertools.count(1)))
    assert "at most 100,000 values" in line


def test_a_module_without_a_config_cannot_be_sized() -> None:
    assert "a HuggingFace model" in error_line(lambda: llmsim.size(torch.nn.Linear(4, 4)))


@pytest.mark.parametrize("name", sorted(ODD.keys() - {"a bare module"}))
def test_what_is_no_model_is_refused(name: str) -> None:
    assert "must be a hub id" in error_line(lambda: llmsim.trace(real(NamedBadValue(name))))


def test_variables_that_will_not_be_looked_at_are_no_models() -> None:
    assert not is_model(RaisesOnEveryAccess())
    assert not is_model(InstanceOfRaisingMetaclass())
    for name in ("nasty", "nasty.attribute", "of.attribute"):
        with pytest.raises(InvalidValue, match="holds an object of type"):
            find_model(name, {"nasty": RaisesOnEveryAccess(), "of": InstanceOfRaisingMetaclass()})


def test_a_line_whose_memory_cannot_be_told_is_refused_before_it_is_shown() -> None:
    shell = InteractiveShell(config=NO_HISTORY)
    shell.run_line_magic("load_ext", "llmsim_magic")
    shell.user_ns["short"] = small_models.qwen3()
    with pytest.raises(UsageError, match=r"exceeds the model.s maximum of 32 tokens"):
        shell.run_line_magic("llmsim", "short --memory ;")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "config.json")
    for name in (tmp_path, tmp_path / "config.json"):
        assert "config.json is not a file" in error_line(lambda name=name: llmsim.trace(str(name)))


@pytest.mark.parametrize("name", ["x" * 5_000, "~nosuchuser", "/" + "y" * 300, "a\0b"])
def test_a_name_that_no_path_can_have_is_an_unknown_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert shorten(name)[:20] in error_line(lambda: llmsim.trace(name))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"n_embd": ' + b"9" * 5_000 + b"}", "too many digits"),
        (b'{"a": ' * 60 + b"1" + b"}" * 60, "nested too deep"),
        (b'{"a": [' + b"0," * 200_000 + b"0]}", "over 200,000 values"),
        (b"{" + b" " * (5 << 20) + b"}", "over 4 MiB"),
    ],
)
def test_a_file_beyond_any_config_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    assert said in error_line(lambda: llmsim.trace(written(tmp_path, content)))


def test_a_file_that_starts_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(GPT2).encode()
    assert not isinstance(check_outcome(lambda: llmsim.trace(written(tmp_path, content))), str)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (GPT2 | {"n_layer": 1_001}, "must be at most 1000"),
        ({"model_type": "whisper", "max_source_positions": 10**9}, "1 × 2,000,000,000 values"),
        (GPT2 | {"dtype": {}}, "not a dtype of torch"),
        (GPT2 | {"num_labels": 10**9}, "must be at most 100000"),
    ],
)
def test_a_config_beyond_any_model_is_refused(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in error_line(lambda: llmsim.trace(written(tmp_path, keys), context=8))


def test_a_model_of_more_parts_than_can_be_built_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_buffers, "MAX_TENSORS", 1_000)
    keys = {"model_type": "switch_transformers", "num_experts": 20_000}
    assert "more than 1,000 weights" in error_line(lambda: llmsim.trace(written(tmp_path, keys)))


def test_an_input_that_memory_cannot_hold_is_refused() -> None:
    line = error_line(lambda: llmsim.trace("distilgpt2", batch=2**31 - 1, context=1))
    assert "2,147,483,647 × 1 values" in line
    assert "without weights: an input of" in line


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor(
            [torch.zeros(2, 8), torch.zeros(3, 8)], layout=torch.jagged
        ),
        lambda: torch.zeros(3, 8).to_sparse(),
        lambda: torch.nn.parameter.UninitializedParameter(),
    ],
)
def test_a_refusal_of_this_package_is_said_without_the_name_of_its_class(
    make: Callable[[], torch.Tensor],
) -> None:
    line = error_line(lambda: llmsim.trace(torch.nn.Linear(8, 4), inputs=(make(),)))
    assert not re.search(r"\b[A-Z][a-z]+[A-Z]\w+:", line)


def test_an_error_of_this_package_is_described_by_its_message() -> None:
    assert describe(CannotEvaluate("the forward lists: indices")) == "the forward lists: indices"
    assert (
        failure_reason(CannotEvaluate("the forward lists: indices")) == "the forward lists: indices"
    )
    assert describe(KeyError("key")) == "KeyError: 'key'"


def test_a_text_that_no_file_can_hold_is_shown_escaped(tmp_path: Path) -> None:
    keys = GPT2 | {"model_type": "\ud800"}
    report = llmsim.trace(written(tmp_path, keys), context=8)
    assert check_outcome(lambda: report) is report
    assert report.trace.model.model_type == r"\ud800"


def test_a_quantisation_of_no_number_is_kept_as_words(tmp_path: Path) -> None:
    keys = GPT2 | {"quantization_config": {"quant_method": "fp8", "scale": float("inf")}}
    report = llmsim.trace(written(tmp_path, keys), context=8)
    assert check_outcome(lambda: report) is report
    assert report.trace.model.quantisation == {"quant_method": "fp8", "scale": "Infinity"}


def test_a_time_that_a_device_does_not_have_is_refused_before_it_is_shown() -> None:
    line = error_line(lambda: llmsim.trace("distilgpt2", dtype="float32", hardware="TPU v5e"))
    assert "TPU v5e computes in" in line


def test_a_context_that_no_device_is_sized_for_is_refused_before_it_is_shown() -> None:
    line = error_line(lambda: llmsim.trace(small_models.qwen3(), context=128, hardware="all"))
    assert "exceeds the model's maximum of 32 tokens" in line


def test_a_comparison_that_cannot_be_made_is_refused_before_it_is_shown() -> None:
    line = error_line(lambda: answer(Request(model=small_models.qwen3(), compare="distilgpt2")))
    assert "exceeds the model's maximum of 32 tokens" in line


def test_a_config_object_that_cannot_be_written_is_refused() -> None:
    config = transformers.GPT2Config()
    config.dtype = ["bfloat16"]
    assert "config" in error_line(lambda: llmsim.trace(config))


def test_a_column_sums_exactly_beyond_64_bits() -> None:
    assert pd.Series(integers([2**62] * 4)).sum() == 2**64
    assert pd.Series(integers([2**62, None])).dropna().tolist() == [2**62]


def test_a_pass_of_more_flops_than_64_bits_hold_has_their_sum() -> None:
    report = llmsim.trace("meta-llama/Llama-3.1-405B", batch=64, context=2**20)
    flops = report.ops["flops"].sum()
    assert flops == report.summary.loc["flops", "value"] > 2**63


def test_no_name_is_no_model() -> None:
    assert "hub id" in error_line(lambda: llmsim.trace(""))


def test_a_type_that_is_unknown_is_told_beside_what_it_is_taken_for(tmp_path: Path) -> None:
    keys = GPT2 | {"model_type": "zzz", "architectures": ["GPT2LMHeadModel"]}
    report = llmsim.trace(written(tmp_path, keys), context=8)
    assert any(
        "'zzz' is unknown; the model is built as gpt2" in note for note in report.trace.notes
    )


def test_options_without_a_model_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ops"]) == 2
    assert "no model is given" in capsys.readouterr().err


def test_a_module_in_a_message_is_named_without_the_path_of_its_file() -> None:
    assert describe(ValueError(f"not in {json}")) == "ValueError: not in module json"
