"""`%llmsim` and the command with random arguments give an answer or a one-line error."""

import contextlib
import io
import os
import shlex
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from llmsim_magic.__main__ import main
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.simulate.options import OPTIONS
from tests.helpers import small_models
from tests.helpers.bad_values import NUMBERS, ODD, TEXTS
from tests.helpers.outcomes import check_outcome
from tests.helpers.shells import NO_HISTORY

VIEWS = ("--summary", "--ops", "--deps", "--topological", "--costs", "--memory", "--multi-config")
TRAINING = ("--checkpointing", "--qlora", "--packed", "--phase=train", "--phase=train")
FLAGS = (
    *VIEWS,
    *TRAINING,
    "--base",
    "--no-replay",
    "--sure",
    "--trust-remote-code",
    "--help",
    "-h",
)
LEGAL: dict[str, tuple[str, ...]] = {
    **{option.flag: option.choices for option in OPTIONS if option.choices},
    "--hardware": ("H100", "A100,MI300X", "all", "RTX4090", "TPUv5e"),
    "--batch": ("1", "1,16", "3", "2147483647"),
    "--context": ("1", "1,128", "7", "1048576"),
    "--depth": ("1", "2", "9"),
    "--layers": ("0", "0,1", "all"),
    "--explain": ("transformer.h.0.mlp", "lm_head", "model.layers.0.mlp.up_proj", "nowhere"),
    "--tp": ("1", "2", "3"),
    "--pp": ("1", "2", "5"),
    "--ep": ("1", "2"),
    "--optimizer": ("adamw", "sgd", "adamw_8bit", "lion"),
    "--lora": ("r=4", "r=8,targets=all-linear", "r=2,targets=c_attn", "r=0"),
    "--accumulate": ("1", "2", "3"),
    "--dp": ("1", "2", "8"),
    "--compare": ("gpt2", "variable"),
    "--csv": ("out", "out/deeper", "file"),
    "-o": ("kept", "r"),
    "--model": ("distilgpt2",),
}
MODELS = ("distilgpt2", "gpt2", "variable", "live", "name", "bert-base-uncased", "holder.config")
WRONG = (
    *("gtp2", "no/such/model", "a/b/c", "..", ".", "/dev/null", "/dev/zero", "~nosuchuser", "file"),
    *("a.b.c", "variable.nothing.at.all", "nasty.x", "chameleon.a.b", "--nosuch", "-x", "--", "="),
    *("--batch=1,,2", "--phase=", "x" * 300, "'", '"', "\\", "#", ";", "{variable}", "{", "$name"),
)
_words = st.sampled_from((*WRONG, *TEXTS, *map(str, NUMBERS))) | st.text(max_size=12)
_models = st.sampled_from(MODELS)
_quoted = _words.map(shlex.quote)


@st.composite
def _options(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(LEGAL)))
    is_legal = draw(st.sampled_from((True, True, True, False)))
    value = draw(st.sampled_from(LEGAL[name]) if is_legal else _words | _quoted)
    return f"{name}{draw(st.sampled_from((' ', ' ', '=')))}{value}"


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A line that someone may have meant, or nobody."""
    model = draw(
        _models
        if draw(st.sampled_from((*[True] * 9, False)))
        else _quoted | st.sampled_from(sorted(ODD))
    )
    more = draw(st.lists(_options() | st.sampled_from(FLAGS), max_size=4))
    stray = draw(st.just([]) | st.lists(_words | _quoted, max_size=1))
    parts = draw(st.permutations([model, *more, *stray]))
    line = draw(st.sampled_from((" ", " ", "  ", "\t"))).join(parts)
    return _safe(line + draw(st.sampled_from(("", "", ";", "  # why", "\n"))))


def _safe(line: str) -> str:
    """Nothing that measures for half a minute, and no tables outside of the folder of the case."""
    return line.replace("local", "locals").replace("--csv=/", "--csv=").replace("--csv /", "--csv ")


@contextlib.contextmanager
def _somewhere() -> Any:
    """In an empty folder, deep enough for a way up, without the hub."""
    before = os.getcwd()
    with TemporaryDirectory(prefix="fuzz") as folder:
        deep = Path(folder) / "a" / "b" / "c"
        deep.mkdir(parents=True)
        (deep / "file").write_text("{")
        os.chdir(deep)
        try:
            with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
                yield
        finally:
            os.chdir(before)


@cache
def _shell() -> InteractiveShell:
    made = InteractiveShell(config=NO_HISTORY)
    made.run_line_magic("load_ext", "llmsim_magic")
    return made


def _variables() -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    config = small_models.qwen3()
    live = AutoModelForCausalLM.from_config(small_models.gpt2())
    holder = type("Holder", (), {"config": config})()
    odd = {name: make() for name, make in ODD.items()}
    return {"variable": config, "live": live, "name": "distilgpt2", "holder": holder, **odd}


@pytest.mark.slow
@given(lines())
def test_a_line_ends_in_a_right_report_or_one_line(line: str) -> None:
    shell = _shell()
    shell.user_ns.update(_variables())

    def ask() -> Any:
        try:
            with capture_output():
                return shell.run_line_magic("llmsim", line)
        except UsageError as error:
            raise (LlmsimError if type(error) is UsageError else TypeError)(str(error)) from None

    with _somewhere():
        check_outcome(ask)


@pytest.mark.slow
@given(
    st.lists(_models | _options().map(shlex.quote) | st.sampled_from(FLAGS) | _words, max_size=5)
)
def test_a_command_ends_in_text_or_one_line(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()

    def ask() -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        assert status in (0, 2)
        if status == 2:
            assert not out.getvalue()
            raise LlmsimError(err.getvalue().removeprefix("llmsim: ").removesuffix("\n"))
        assert out.getvalue().strip()

    with _somewhere():
        check_outcome(ask)
