"""Names appear as plain text in pages, graphs, tables, messages and files."""

import dataclasses
import io
import json
import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.__main__ import main
from llmsim_magic.notebook import progress
from llmsim_magic.notebook.code_export import magic_line, python_call
from llmsim_magic.records.errors import InvalidValue, LlmsimError, UnknownModel
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Request
from llmsim_magic.simulate.views import VIEWS, views_of
from llmsim_magic.views.csv_export import to_csv
from llmsim_magic.views.graphs.render import lay_out
from tests.helpers import hostile_names, small_models

NAMES = [
    pytest.param(name, id=kind, marks=() if kind == "all at once" else pytest.mark.slow)
    for kind, name in hostile_names.NAMES.items()
]
SVG_TAGS = {"svg", "g", "title", "text", "path", "polygon", "polyline", "ellipse", "style", "defs",
            "marker", "use", "rect", "clipPath"}  # fmt: skip


@cache
def report(name: str) -> Report:
    made = llmsim.trace(hostile_names.model(name), context=5, hardware="H100")
    request = Request(
        model=name, views=tuple(VIEWS), deployment=made.deployment, explain="model.layers.0.mlp"
    )
    return dataclasses.replace(made, views=views_of(request), explained=request.explain).prepare()


@cache
def plain() -> Report:
    return report("plain")


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str, like: str, name: str) -> None:
    """The same elements with the same attributes as the page of a plain name, and the name."""
    found = Elements(page)
    assert found.found == Elements(like).found
    assert printable(name) in found.text
    assert not [each for each in found.text if not (each.isprintable() or each == "\n")]


def check_svg(svg: str, like: str) -> None:
    """XML, without scripts, links and all that is foreign, and as many parts as the plain one."""
    root = ElementTree.fromstring(svg)
    tags = Counter(part.tag.rpartition("}")[2] for part in root.iter())
    assert set(tags) <= SVG_TAGS
    for part in root.iter():
        for attribute, value in part.attrib.items():
            assert not attribute.lower().startswith("on")
            assert "href" not in attribute or value.startswith("#"), value
    parts = Counter(part.get("class") for part in root.iter() if part.get("class"))
    assert parts["node"] == like.count('class="node"')
    assert parts["edge"] == like.count('class="edge"')


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_elements_of_a_plain_name(name: str) -> None:
    asked, like = report(name), plain()
    check_page(asked.page(), like.page(), name)
    bundle, other = asked._repr_mimebundle_(), like._repr_mimebundle_()
    check_page(bundle["text/html"], other["text/html"], name)
    for view, graph in asked.drawings.items():
        check_page(graph._repr_html_(), like.drawings[view]._repr_html_(), "")
    assert Elements(asked.costing.roofline._repr_html_()).found == [
        ("style", ()),
        ("img", ("class", "alt", "style", "src")),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_the_parts_of_a_plain_name(name: str) -> None:
    for view, graph in report(name).drawings.items():
        check_svg(graph.svg, plain().drawings[view].svg)
        assert Counter(re.findall(rb'class="(node|edge|cluster)"', lay_out(graph.dot))) == Counter(
            re.findall(rb'class="(node|edge|cluster)"', lay_out(plain().drawings[view].dot))
        )
        said = "".join(ElementTree.fromstring(graph.svg).itertext())
        assert printable(name)[:60] in said  # of an end too long for a drawing there is less
        assert max(map(len, _labels(graph.svg))) <= 121
    roofline = report(name).costing.roofline
    check_svg(roofline.svg, "")
    assert roofline.render("png").startswith(b"\x89PNG")


def _labels(svg: str) -> list[str]:
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_text_drives_no_terminal(name: str) -> None:
    for text in (repr(report(name)), report(name)._repr_mimebundle_()["text/plain"]):
        assert not [each for each in text if not (each.isprintable() or each == "\n")]
    said = "".join(repr(report(name)).split())  # a long name goes over several lines
    assert "".join(printable(name)[:40].split()) in said


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_data_to_a_spreadsheet_and_the_same_to_pandas(name: str) -> None:
    for title, table in report(name).tables().items():
        named = table.reset_index() if table.index.name else table
        read = pd.read_csv(io.BytesIO(to_csv(table)), dtype=str, keep_default_na=False)
        assert len(read) == len(table)
        for cell in (*read.columns, *read.to_numpy().ravel()):
            assert not re.match(r"[=+@\t\r]|-(?!\d+(\.\d+)?(e[-+]\d+)?$)", cell), (title, cell)
            assert cell.isprintable()
        for column, back in zip(named, read, strict=True):
            for cell, other in zip(named[column], read[back], strict=True):
                if isinstance(cell, str):
                    assert other.removeprefix("'") == cell.removeprefix("'")


@pytest.mark.parametrize("name", NAMES)
def test_a_timeline_is_json_and_a_record_survives_it(name: str) -> None:
    asked = report(name)
    assert len(json.loads(asked.costing.events)) == len(json.loads(plain().costing.events))
    assert Trace.from_json(asked.trace.to_json()) == asked.trace


def test_a_record_from_elsewhere_is_legible() -> None:
    written = plain().trace.to_json().replace(b"plain", b"\\u001b[2J\\n")
    read = Trace.from_json(written)
    assert read.model.name == r"\x1b[2J\n"
    assert repr(dataclasses.replace(plain(), trace=read).prepare()).replace("\n", "").isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_be_called_anything(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = name.replace("/", "\\").replace("\0", "").replace("\ud800", "\udcff")[:60]
    folder = tmp_path / called
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small_models.llama().to_dict()))
    assert main([str(folder), "--context", "4", "--csv", str(folder / "out")]) == 0
    out = capsys.readouterr().out
    assert f"Summary of {printable(called)}" in out
    assert out.replace("\n", "").isprintable()
    (folder / "config.json").write_text("{")
    assert main([str(folder)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_a_download_has_a_name_that_any_system_takes(name: str) -> None:
    for file in (report(name).file_name(VIEWS["ops"], "ops.html"), *report(name).files()):
        assert re.fullmatch(r"[\w.-]+", file)
        assert len(file.encode()) <= 255
        assert not file.startswith((".", "-"))


@pytest.mark.parametrize("name", [*hostile_names.NAMES.values()])
def test_any_error_is_one_line_that_can_be_seen(name: str) -> None:
    for error in (
        InvalidValue.must_be("x", name, name),
        UnknownModel(f"{name}: is unknown; nearest: gpt2"),
        LlmsimError(name + "end"),
    ):
        line = str(error)
        assert line.isprintable()
        assert len(line) <= 600
    assert str(UnknownModel(f"{name}: is unknown; nearest: gpt2")).endswith("nearest: gpt2")


@pytest.mark.parametrize("name", [*hostile_names.NAMES.values()])
def test_progress_is_told_as_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(progress, "display", lambda content, **_: shown.append(content))
    notice = progress.ProgressLine()
    notice._started -= 2
    notice.update(name)
    page = Elements(shown[0]["text/html"])
    assert page.found == [("span", ("role",))]
    assert printable(name) in page.text


@pytest.mark.parametrize("name", [*hostile_names.NAMES.values()])
def test_code_to_copy_says_the_name_as_data(name: str) -> None:
    request = Request(model=name, explain=name, csv=name)
    assert magic_line(request).startswith("%llmsim ")
    code = python_call(request)
    calls = [line for line in code.splitlines() if line.startswith("report = ")]
    compile(code.encode(errors="backslashreplace").decode(), "copied", "exec")
    assert len(calls) == 1


def test_a_number_stays_one_beside_a_text_that_begins_like_one() -> None:
    table = pd.DataFrame({"=n": [-1, -2.5], "text": ["-1+1", "'quoted"], "shape": [[(1, 2)], []]})
    assert to_csv(table).decode("utf-8-sig").splitlines() == [
        "'=n,text,shape",
        '-1.0,\'-1+1,"[1, 2]"',
        "-2.5,'quoted,",
    ]
