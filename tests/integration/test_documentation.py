"""What the documentation shows is what happens."""

import doctest
import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    made = {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")}
    assert made == {"gpt2.svg", "tables"}


def test_the_readmes_magics_are_legal() -> None:
    from llmsim_magic.notebook.arguments import parse_line

    lines = re.findall(r"^(?:\w+ = )?%llmsim (.+)$", README, re.MULTILINE)
    assert lines
    for line in lines:
        assert parse_line(line).request.model


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "name", ["llmsim_magic.simulate.api", "llmsim_magic.simulate.hardware.size"]
)
def test_examples_in_docstrings_run(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_examples_of_the_help_are_legal() -> None:
    from llmsim_magic.notebook.arguments import EXAMPLES, parse_line

    for line in EXAMPLES.splitlines()[1:]:
        assert parse_line(line.split("%llmsim", 1)[1]).request.model


@pytest.mark.slow
def test_the_examples_of_the_help_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsim_magic.catalog import models
    from llmsim_magic.notebook.arguments import EXAMPLES, parse_line
    from llmsim_magic.simulate.answer import answer

    monkeypatch.chdir(tmp_path)
    for line in EXAMPLES.splitlines()[1:]:
        request = parse_line(line.split("%llmsim", 1)[1]).request
        if models.find(request.model) is None:  # a variable of the reader's
            request = replace(request, model="distilgpt2", contexts=(8,))
        assert answer(request).tables() or request.explain
