"""Every example in the documentation runs and shows what it says."""

import doctest
import importlib
import posixpath
import re
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
LARGEST_PICTURE = 300_000

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


def run(path: Path) -> None:
    """The Python of a page, from top to bottom."""
    namespace: dict[str, object] = {}
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), namespace)


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blocks(README)
    run(README)
    made = {file.name for file in tmp_path.iterdir() if not file.name.startswith(".")}
    assert made == {"qwen3.svg"}


@pytest.mark.slow
@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page)], ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(path)


def test_every_how_to_has_python() -> None:
    pages = [page for page in PAGES if page.parent.name == "howto"]
    assert pages
    assert all(map(blocks, pages))


@every_document
def test_magics_are_legal(path: Path) -> None:
    from llmsim_magic.notebook.arguments import parse_line

    text = path.read_text("utf-8")
    lines = re.findall(r"^(?:\w+ = )?%llmsim (.+)$", text, re.MULTILINE)
    lines += re.findall(r"`(?:\w+ = )?%llmsim ([^`…?]+)`", text)
    assert lines or path != README
    for line in lines:
        assert parse_line(line).request.model


@every_document
def test_every_link_into_the_repository_leads_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)[^)]*\)", text)
    links += re.findall(r'(?:src|href)="([^":#]+)"', text)
    for target in links:
        assert (path.parent / target).exists(), target


def test_every_file_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for name in re.findall(r"`((?:llmsim_magic|tests|docs|\.ci|\.github)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r": ([\w/-]+\.md)$", navigation, re.MULTILINE))
    assert {posixpath.relpath(page, ROOT / "docs") for page in PAGES} <= named


def test_pictures_are_small_and_used() -> None:
    texts = "".join(document.read_text("utf-8") for document in DOCUMENTS)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < LARGEST_PICTURE, picture.name
        assert f"images/{picture.name}" in texts, picture.name


def test_every_column_has_a_meaning() -> None:
    import llmsim_magic as llmsim
    from llmsim_magic.notebook.arguments import parse_line
    from llmsim_magic.simulate.answer import answer
    from llmsim_magic.views.tables.column_meanings import MEANINGS, missing

    report = llmsim.trace("gpt2", context=8, hardware="H100")
    sweep = llmsim.sweep("gpt2", batch=[1], context=[8], phase="prefill")
    step = llmsim.trace("gpt2", phase="train", context=8, hardware="H100")
    tables = {
        "sizing": llmsim.size("gpt2", hardware=["H100"]).table,
        "alternatives": step.alternatives,
        "workloads": sweep.totals,
        "sweep_ops": sweep.ops,
        "differences": answer(parse_line("gpt2 --compare distilgpt2").request).differences,
        "timeline": llmsim.trace("gpt2", phase="train", batch=1, context=8).timeline,
    }
    workloads = {"shapes"}  # its columns are named by workload
    for name in MEANINGS.keys() - workloads:
        table = tables[name] if name in tables else getattr(report, name)
        columns = [*filter(None, [table.index.name]), *table.columns]
        assert missing(name, columns) == []


@pytest.mark.parametrize(
    "name",
    [
        "simulate.api",
        "simulate.hardware.size",
        "simulate.cache.forget",
        "simulate.report",
        "simulate.report_tables",
        "simulate.sweeps.formulas",
        "simulate.sweeps.sweep",
        "notebook.panel.panel",
    ],
)
def test_examples_in_docstrings_run(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"llmsim_magic.{name}"))
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
