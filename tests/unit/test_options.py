"""Each option is declared once: the magic, the Python functions, the panel and completion agree."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import UsageMistake, parse, parse_line, parser
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.simulate.options import BY_NAME, GRAPH, OPTIONS, Option, request_of
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Request

CALLS: dict[str, Callable[..., Any]] = {
    "trace": llmsim.trace,
    "sweep": llmsim.sweep,
    "size": llmsim.size,
    "panel": llmsim.panel,
    GRAPH: Report.dependency_graph,
}
OWN = {"model", "inputs", "loss", "progress", "cancelled", "executor", "view", "self"}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_that_is_left_out_has_its_default(option: Option) -> None:
    assert option.value(request_of("gpt2", ("summary",), {})) == option.default
    assert option.value(parse(["gpt2"]).request) == option.default


@pytest.mark.parametrize("call", CALLS)
def test_a_function_takes_the_options_that_name_it_and_no_other(call: str) -> None:
    taken = set(inspect.signature(CALLS[call]).parameters) - OWN
    assert taken == {option.name for option in OPTIONS if call in option.calls}


def test_every_option_is_a_flag_of_the_magic_with_its_help() -> None:
    text = " ".join(parser().format_help().split())
    for option in OPTIONS:
        assert option.flag in text
        assert option.help in text


def test_a_request_of_defaults_is_the_plain_request() -> None:
    assert request_of("gpt2", ("summary",), {}) == Request(model="gpt2")


def test_every_choice_is_taken() -> None:
    for name in ("phase", "dtype", "attn", "level", "weight_dtype", "kv_dtype", "launch"):
        option = BY_NAME[name]
        for choice in option.choices:
            words = ["gpt2", option.flag, choice]
            assert parse(words).request.model == "gpt2"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--op", "--ops"),
        ("--OPS", "--ops"),
        ("-ops", "--ops"),
        ("—ops", "--ops"),
        ("–deps", "--deps"),
        ("-hardware H100", "--hardware"),
        ("--hardwre=H100", "--hardware"),
        ("--weight_dtype int8", "--weight-dtype"),
        ("--multi", "--multi-config"),
        ("--contxt=5", "--context"),
        ("--sumary", "--summary"),
    ],
)
def test_an_unknown_option_names_the_nearest(typed: str, meant: str) -> None:
    for read in (lambda: parse_line(f"gpt2 {typed}"), lambda: parse(["gpt2", *typed.split()])):
        with pytest.raises(UsageMistake, match=rf"did you mean {meant}\?"):
            read()


@pytest.mark.parametrize("words", ["gpt2 --zzzzz", "gpt2 --panel"])
def test_an_option_like_none_gets_no_suggestion(words: str) -> None:
    with pytest.raises(UsageMistake, match="unknown option") as caught:
        parse(words.split(), "llmsim")
    assert "did you mean" not in str(caught.value)


def test_a_second_model_is_refused() -> None:
    with pytest.raises(UsageMistake, match="'bert' is given beside it"):
        parse(["gpt2", "bert"])


def test_yes_is_sure() -> None:
    assert parse(["gpt2", "--multi-config", "--yes"]) == parse(["gpt2", "--multi-config", "--sure"])


@pytest.mark.parametrize("text", ["--5", "9" * 5000, "", "1.5", "x"])
def test_a_number_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(InvalidValue, match="--batch must be a whole number of at least 1"):
        BY_NAME["batch"].parse(text)
