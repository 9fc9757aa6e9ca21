"""The interactive graph: layers one by one, the details of a node, colourings, themes."""

import json
from pathlib import Path
from typing import Any

import pytest

import llmsim_magic as llmsim
from llmsim_magic.views.graphs.graph import Graph
from tests.helpers import small_models

pytestmark = pytest.mark.browser
CHIP = '[data-chip="model.layers.0"]'
Q_PROJ = '[data-kind=operator][data-name="n5"]'


@pytest.fixture(scope="module")
def graph() -> Graph:
    return llmsim.trace("Qwen/Qwen3-0.6B", hardware="H100").dependency_graph()


def show(page: Any, graph: Graph, folder: Path, body: str = "") -> Any:
    file = folder / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body {body}>{graph._repr_html_()}")
    page.goto(file.as_uri())
    return page.locator(".llmsim-graph")


@pytest.fixture
def drawing(page: Any, graph: Graph, tmp_path: Path) -> Any:
    return show(page, graph, tmp_path)


def layers(drawing: Any) -> list[str]:
    """The names of the closed layers, as the drawing has them."""
    return drawing.locator("g.node[data-kind=closed]").evaluate_all(
        "all => all.map(g => g.getAttribute('aria-label').split(' ')[0])"
    )


def panel(drawing: Any) -> dict[str, list[str]]:
    """The rows of the details, by label."""
    return drawing.locator("aside dl").evaluate(
        """list => { const rows = {}; let label;
          for (const part of list.children) {
            if (part.localName === "dt") rows[label = part.textContent] = [];
            else rows[label].push(part.textContent);
          }
          return rows; }"""
    )


def scale(drawing: Any) -> float:
    return drawing.locator("svg").evaluate("svg => svg.clientWidth / svg.viewBox.baseVal.width")


def middle(drawing: Any, selector: str) -> tuple[float, float]:
    box = drawing.locator(selector).first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"]


def test_layers_are_drawn_one_by_one_and_as_one_again(drawing: Any) -> None:
    assert layers(drawing) == []
    drawing.locator(CHIP).click()
    assert layers(drawing) == [f"layers.{index}" for index in range(28)]
    drawing.locator('g[aria-label^="layers.3 "]').click()
    assert layers(drawing) == [f"layers.{index}" for index in range(28) if index != 3]
    assert drawing.locator("[data-name='box model.layers.3.self_attn']").is_visible()
    drawing.locator('[data-chip="model.layers.2"]').focus()
    drawing.page.keyboard.press("Enter")
    assert layers(drawing) == []
    assert drawing.locator(Q_PROJ).is_visible()


def test_zoom_and_place_survive_an_expansion(drawing: Any) -> None:
    for _ in range(2):
        drawing.get_by_label("zoom out").click()
    before, at = scale(drawing), middle(drawing, "[data-name='box model.layers.0']")
    drawing.locator(CHIP).click()
    assert scale(drawing) == pytest.approx(before, rel=0.01)
    assert middle(drawing, 'g[aria-label^="layers.0 "]') == pytest.approx(at, abs=3)


def test_layers_that_are_open_feed_each_other_in_a_chain(drawing: Any) -> None:
    drawing.locator(CHIP).click()
    edges = drawing.evaluate(
        "box => box.drawing.edges.map(({ source, target }) => [source.path, target.path])"
    )
    between = [edge for edge in edges if all("layers" in end for end in edge)]
    assert sorted(between, key=lambda edge: int(edge[0].rpartition(".")[2])) == [
        [f"model.layers.{index}", f"model.layers.{index + 1}"] for index in range(27)
    ]
    readers = {target for source, target in edges if source == "model.rotary_emb"}
    assert readers == {f"model.layers.{index}" for index in range(28)}


def test_a_click_tells_all_that_is_known_of_a_node(drawing: Any, graph: Graph) -> None:
    drawing.locator(Q_PROJ).click()
    rows = panel(drawing)
    assert rows["path"] == ["model.layers.0.self_attn.q_proj"]
    assert rows["type"] == ["Linear"]
    assert rows["inputs"] == ["[1, 128, 1024] bfloat16"]
    assert rows["outputs"] == ["[1, 128, 2048] bfloat16"]
    assert rows["weights"] == ["model.layers.0.self_attn.q_proj.weight [2048, 1024] bfloat16"]
    # 2 · 128 · 1024 · 2048 multiply-adds are 536.9 MFLOPs.
    assert rows["FLOPs"] == ["537 MFLOPs each, 15.0 GFLOPs in 28 layers"]
    assert rows["parameters"] == ["2.10 M each, 58.7 M in 28 layers"]
    assert rows["layers"] == ["0-27: 28 alike"]
    assert rows["source"][0].startswith("modeling_qwen3.py:")
    assert "s each" in rows["time"][0]
    assert "input_layernorm" in rows["reads"][0]
    assert "q_norm" in rows["feeds"][0]
    assert drawing.locator("aside dd[title='536,870,912 FLOPs']").count() == 1


def test_the_details_lead_on_and_close(drawing: Any) -> None:
    drawing.locator(Q_PROJ).click()
    drawing.locator("aside button", has_text="q_norm").click()
    assert panel(drawing)["path"] == ["model.layers.0.self_attn.q_norm"]
    drawing.get_by_label("close the details").click()
    assert not drawing.locator("aside").is_visible()


def test_the_keyboard_brings_what_it_reaches_into_sight(drawing: Any) -> None:
    drawing.locator(CHIP).focus()
    drawing.page.keyboard.press("Enter")
    frame = drawing.locator("svg").bounding_box()
    for _ in range(40):
        drawing.page.keyboard.press("Tab")
    reached = drawing.page.evaluate(
        "() => { const { y, height } = document.activeElement.getBoundingClientRect();"
        " return [document.activeElement.getAttribute('aria-label'), y, y + height]; }"
    )
    assert "fold the 28" in reached[0] or "layers." in reached[0]
    assert frame["y"] - 1 <= reached[1]
    assert reached[2] <= frame["y"] + frame["height"] + 1


def test_a_layer_of_its_own_has_its_own_names(drawing: Any) -> None:
    drawing.locator(CHIP).click()
    drawing.locator('g[aria-label^="layers.1 "]').click()
    rows = panel(drawing)
    assert rows["reads"][0].startswith("model.layers.0")
    assert rows["outputs"] == ["[1, 128, 1024] bfloat16"]
    assert rows["inputs"][0] == "[1, 128, 1024] bfloat16"
    name = drawing.evaluate(
        """box => box.drawing.items.find(({ kind, path }) =>
             kind === "operator" && path === "model.layers.1.self_attn.q_proj").name"""
    )
    drawing.evaluate("(box, name) => box.drawing.pick(box.drawing.folding.known.get(name))", name)
    rows = panel(drawing)
    assert rows["weights"] == ["model.layers.1.self_attn.q_proj.weight [2048, 1024] bfloat16"]
    assert rows["FLOPs"] == ["537 MFLOPs"]


@pytest.mark.parametrize(
    ("quantity", "unit"), [("flops", "FLOPs"), ("bytes", "B"), ("memory", "B"), ("time", "s")]
)
def test_a_colouring_shows_what_is_much(drawing: Any, quantity: str, unit: str) -> None:
    drawing.get_by_label("colour by").select_option(quantity)
    shares, values = drawing.evaluate(
        """(box, quantity) => {
          const { items, groups, folding } = box.drawing;
          const nodes = items.filter(({ kind }) => kind === "operator");
          const fill = (item) => groups.get(item).querySelector("rect").style.fill;
          return [nodes.map((item) => Number(/([\\d.]+)%/.exec(fill(item))[1])),
            nodes.map((item) => totalOf(folding, item, quantity))];
        }""".replace("totalOf(folding, item, quantity)", TOTAL),
        quantity,
    )
    most = max(values)
    assert max(shares) == 100
    for share, value in zip(shares, values, strict=True):
        assert share == pytest.approx(100 * (value / most) ** 0.5, abs=1)
    assert drawing.locator(".llmsim-legend").inner_text().endswith(unit)


# What a node costs in all of its layers, computed here from the data of the page.
TOTAL = """(() => {
  const all = item.orders.map((order) => folding.factsOf(order).values[quantity]);
  if (quantity === "memory") return Math.max(...all);
  return all.reduce((sum, one) => sum + one, 0) * (item.path.includes("layers.0") ? 28 : 1);
})()"""


def test_without_a_device_there_is_no_time(page: Any, tmp_path: Path) -> None:
    drawing = show(page, llmsim.trace("gpt2").dependency_graph(), tmp_path)
    options = (
        drawing.get_by_label("colour by")
        .locator("option")
        .evaluate_all("all => all.map(option => option.value)")
    )
    assert options == ["kind", "flops", "bytes", "memory"]


def test_layers_that_take_turns_are_opened_together(page: Any, tmp_path: Path) -> None:
    drawing = show(page, llmsim.trace("google/gemma-2-2b").dependency_graph(), tmp_path)
    drawing.locator("[data-chip]").first.click()
    assert layers(drawing) == [f"layers.{index}" for index in range(26)]


def test_what_is_closed_at_first_opens(page: Any, tmp_path: Path) -> None:
    drawing = show(page, llmsim.trace("gpt2").dependency_graph(depth=2), tmp_path)
    drawing.locator("g[data-kind=closed]", has_text="h.0-11 ×12").locator("text").first.click()
    assert drawing.locator("[data-kind=operator]", has_text="c_fc").count() == 0
    drawing.locator("g[data-kind=closed]", has_text="mlp").click()
    assert drawing.locator("[data-kind=operator]", has_text="c_fc").is_visible()


# What is wrong with a drawing, as it is at first and with its layers and modules opened and folded:
# edges that it lacks, items without a place, lines without points.
FAULTS = """box => {
  const { drawing } = box, { folding } = drawing, { groups } = folding.data, faults = [];
  const check = (state) => {
    drawing.draw();
    const known = new Set(drawing.edges.map(({ source, target }) => `${source.id} ${target.id}`));
    for (const [source, target] of folding.data.edges) {
      const from = folding.item(source), to = folding.item(target);
      if (from !== to && !known.has(`${from.id} ${to.id}`)) {
        faults.push(`${state}: no edge from ${source} to ${target}`);
      }
    }
    const parts = [...drawing.layout.lines, ...drawing.layout.stubs];
    const drawn = new Set(parts.flatMap(({ edges }) => edges));
    const isMissing = (edge) => !drawn.has(edge);
    if (drawing.edges.some(isMissing)) faults.push(`${state}: an edge is not drawn`);
    if (drawing.items.some(({ x, y, width }) => !(x >= 0 && y >= 0 && width > 0))) {
      faults.push(`${state}: an item has no place`);
    }
    const numbers = drawing.layout.lines.flatMap(({ points }) => points.flat());
    if (!numbers.every(Number.isFinite)) faults.push(`${state}: a line has no points`);
  };
  check("at first");
  for (const group of groups) folding.expand(group);
  check("layers one by one");
  for (const { kind, path } of drawing.items) if (kind === "closed") folding.toggle(path);
  check("layers open");
  for (const group of groups) folding.fold(group);
  check("folded again");
  return faults;
}"""


@pytest.mark.parametrize("selection", [{}, {"layers": (1,)}, {"depth": 2}, {"level": "kernel"}])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "t5", "mixtral", "mamba", "gemma2", "whisper"])
def test_no_edge_is_lost_whatever_is_open(page: Any, name: str, selection: dict[str, Any]) -> None:
    report = llmsim.trace(getattr(small_models, name)(), context=small_models.CONTEXT)
    for graph in (report.dependency_graph(**selection), report.topological_graph(**selection)):
        page.set_content(f"<!doctype html>{graph._repr_html_()}")
        assert page.locator(".llmsim-graph[data-live]").evaluate(FAULTS) == []


def contrast(drawing: Any) -> float:
    """The lowest contrast between the text of a node and its colour."""
    return drawing.evaluate(
        """box => {
          const light = (colour) => {
            const pen = document.createElement("canvas").getContext("2d");
            pen.fillStyle = colour;
            pen.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((part) => {
              const share = part / 255;
              return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratio = (node) => {
            const parts = [node.querySelector("rect"), node.querySelector("text")];
            const [most, least] = parts.map((part) => light(getComputedStyle(part).fill))
              .sort((a, b) => b - a);
            return (most + 0.05) / (least + 0.05);
          };
          const nodes = box.querySelectorAll("g.node:not([data-kind=input])");
          return Math.min(...[...nodes].map(ratio));
        }"""
    )


@pytest.mark.parametrize("colouring", ["kind", "flops"])
@pytest.mark.parametrize("theme", ["light", "dark", "dark of JupyterLab"])
def test_both_themes_are_legible(
    page: Any, graph: Graph, tmp_path: Path, theme: str, colouring: str
) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
    body = 'data-jp-theme-light="false"' if "JupyterLab" in theme else ""
    drawing = show(page, graph, tmp_path, body)
    paper = drawing.evaluate("box => getComputedStyle(box).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (theme == "light")
    drawing.get_by_label("colour by").select_option(colouring)
    assert contrast(drawing) >= 4.5


def test_a_light_jupyterlab_on_a_dark_desktop_stays_light(
    page: Any, graph: Graph, tmp_path: Path
) -> None:
    page.emulate_media(color_scheme="dark")
    drawing = show(page, graph, tmp_path, 'data-jp-theme-light="true"')
    assert drawing.evaluate("b => getComputedStyle(b).backgroundColor") == "rgb(255, 255, 255)"


def test_the_page_is_small(graph: Graph) -> None:
    assert len(graph._repr_html_()) < 300_000
    assert json.loads(graph.data)["nodes"]
