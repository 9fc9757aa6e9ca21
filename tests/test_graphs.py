"""The drawings: deterministic, escaped, folded, and one with the tables."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.views.drawing import Graph

NODE = re.compile(r"^\s*n(\d+) \[", re.MULTILINE)
LEGEND = re.compile(r"^\s*legend_\w+ \[label", re.MULTILINE)
EDGE = re.compile(r"^\s*n(\d+) -> n(\d+)", re.MULTILINE)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> llmsim.trace:
    return llmsim.trace("Qwen/Qwen3-0.6B")


@pytest.fixture(scope="module", params=["dependency_graph", "topological_graph"])
def graph(report: llmsim.trace, request: pytest.FixtureRequest) -> Graph:
    return getattr(report, request.param)()


def test_28_layers_are_drawn_once(graph: Graph) -> None:
    assert 15 <= len(NODE.findall(graph.dot)) <= 40
    assert "×28" in graph.dot


def test_every_edge_drawn_is_one_of_the_table(report: llmsim.trace, graph: Graph) -> None:
    known = set(zip(report.edges["source"], report.edges["target"], strict=True))
    in_first_layer = {(a, b) for a, b in known if b < 22}
    drawn = {(int(a), int(b)) for a, b in EDGE.findall(graph.dot)}
    assert in_first_layer <= drawn
    nodes = {int(number) for number in NODE.findall(graph.dot)}
    assert {end for edge in drawn for end in edge} <= nodes
    assert nodes <= set(report.ops.index)


def test_the_picture_holds_every_node_and_edge(graph: Graph) -> None:
    root = ElementTree.fromstring(graph.svg)
    classes = [group.get("class") for group in root.iter(f"{SVG}g")]
    legend = len(LEGEND.findall(graph.dot))
    assert classes.count("node") == len(NODE.findall(graph.dot)) + legend
    assert classes.count("edge") == len(EDGE.findall(graph.dot))


def test_the_source_is_the_same_each_time(report: llmsim.trace) -> None:
    again = llmsim.trace("Qwen/Qwen3-0.6B")
    assert report.dependency_graph().dot == again.dependency_graph().dot
    assert report.topological_graph().dot == again.topological_graph().dot


def test_depth_closes_modules_into_single_nodes(report: llmsim.trace) -> None:
    dot = report.dependency_graph(depth=3).dot
    assert "×28" in dot
    assert len(NODE.findall(dot)) < 10


def test_a_hostile_name_is_only_a_name() -> None:
    class Hostile(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('"><script>alert(1)</script>\\N', torch.nn.Linear(2, 2))
            self.add_module("<b>bold</b>", torch.nn.Linear(2, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for child in self.children():
                x = child(x)
            return x

    report = llmsim.trace(Hostile(), inputs=torch.zeros(1, 2))
    for graph in (report.dependency_graph(), report.topological_graph()):
        root = ElementTree.fromstring(graph.svg)
        assert not [node for node in root.iter() if node.tag.endswith(("script", "}b"))]
        texts = "".join(root.itertext())
        assert '"><script>alert(1)</script>\\N' in texts
        assert "<b>bold</b>" in texts
    assert "<script>" not in report._repr_mimebundle_()["text/html"]


def test_layers_that_differ_are_drawn_apart() -> None:
    dot = llmsim.trace("deepseek-ai/DeepSeek-V3").dependency_graph().dot
    assert "×3" in dot
    assert "×58" in dot


def test_saving_writes_what_the_ending_says(report: llmsim.trace, tmp_path: Path) -> None:
    graph = report.dependency_graph()
    assert graph.save(tmp_path / "x.svg").read_text().startswith("<?xml")
    assert graph.save(tmp_path / "x.dot").read_text() == graph.dot
    with pytest.raises(InvalidValue, match=r"\.svg"):
        graph.save(tmp_path / "x.bmp")


def test_in_a_notebook_a_graph_is_an_image_with_a_text(graph: Graph) -> None:
    page = graph._repr_html_()
    assert '<img alt="Qwen/Qwen3-0.6B' in page
    assert "<svg" not in page
