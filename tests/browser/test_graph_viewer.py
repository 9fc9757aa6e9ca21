"""The graph viewer in a browser: pan, search, fold, and a static image without scripts."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import HTMLExporter

import llmsim_magic as llmsim

pytestmark = pytest.mark.browser
LAYER = 'g[aria-expanded]:has(text:text-matches("layers.0-27"))'
ATTENTION = 'g[aria-expanded]:has(text:text-matches("self_attn ·"))'
Q_PROJ, NORM = '[data-kind=operator][data-name="n5"]', '[data-kind=operator][data-name="n15"]'
CHIP = '[data-chip="model.layers.0"]'


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What a notebook stores of the graph."""
    graph = llmsim.trace("Qwen/Qwen3-0.6B", hardware="H100").dependency_graph()
    return {"text/html": graph._repr_html_(), "text/plain": repr(graph)}


@pytest.fixture
def drawing(page: Any, outputs: dict[str, str], tmp_path: Path) -> Any:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8>{outputs['text/html']}", "utf-8")
    page.goto(file.as_uri())
    return page.locator(".llmsim-graph")


def notebook(outputs: dict[str, str]) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("graph", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("execute_result", outputs, execution_count=1)]
    made = nbformat.v4.new_notebook(cells=[cell])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return made


def height(drawing: Any) -> float:
    return float(drawing.locator("svg").bounding_box()["height"])


def test_a_click_folds_a_box_and_another_opens_it(drawing: Any) -> None:
    before = height(drawing)
    drawing.locator(f"{ATTENTION} text").first.click()
    assert not drawing.locator(Q_PROJ).is_visible()
    assert drawing.locator(NORM).is_visible()
    assert drawing.locator(ATTENTION).get_attribute("aria-expanded") == "false"
    folded = height(drawing)
    assert folded < before - 100

    drawing.locator(LAYER).focus()
    drawing.page.keyboard.press("Enter")
    assert not drawing.locator(NORM).is_visible()
    assert height(drawing) < folded - 100

    drawing.locator(f"{LAYER} text").first.click()
    drawing.locator(f"{ATTENTION} text").first.click()
    assert drawing.locator(Q_PROJ).is_visible()
    assert height(drawing) == pytest.approx(before, abs=1)


def test_a_search_finds_nodes_by_name_and_path(drawing: Any) -> None:
    search = drawing.get_by_label("find a node")
    search.fill("q_proj")
    assert drawing.get_by_role("status").inner_text() == "1 of 24 nodes"
    search.fill("self_attn.")
    assert drawing.get_by_role("status").inner_text() == "6 of 24 nodes"
    search.press("Enter")
    assert drawing.get_by_role("status").inner_text() == "1 of 6"
    search.fill("")
    assert drawing.get_by_role("status").inner_text() == ""


def test_it_zooms_pans_and_fits(drawing: Any) -> None:
    picture = drawing.locator("svg")
    whole = picture.get_attribute("viewBox")
    drawing.get_by_label("zoom in").click()
    zoomed = picture.get_attribute("viewBox")
    assert float(zoomed.split()[2]) < float(whole.split()[2])
    box = picture.bounding_box()
    mouse = drawing.page.mouse
    mouse.move(box["x"] + 10, box["y"] + 300)
    mouse.down()
    mouse.move(box["x"] + 60, box["y"] + 340, steps=3)
    mouse.up()
    moved = [float(x) for x in picture.get_attribute("viewBox").split()]
    assert moved[0] < float(zoomed.split()[0])
    assert moved[1] < float(zoomed.split()[1])
    drawing.get_by_label("show the whole drawing").click()
    assert height(drawing) <= 0.86 * 900


def test_a_node_that_is_clicked_says_its_order(drawing: Any) -> None:
    drawing.evaluate("box => box.addEventListener('llmsim-node', e => box.dataset.got = e.detail)")
    drawing.locator(Q_PROJ).click()
    assert drawing.get_attribute("data-got") == "n5"


def test_it_lives_in_an_exported_page_without_a_network(
    page: Any, outputs: dict[str, str], tmp_path: Path
) -> None:
    text, _ = HTMLExporter().from_notebook_node(notebook(outputs))
    file = tmp_path / "exported.html"
    file.write_text(text, "utf-8")
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    page.goto(file.as_uri())
    page.locator(f".llmsim-graph {ATTENTION} text").first.click()
    assert not page.locator(f".llmsim-graph {Q_PROJ}").is_visible()


@pytest.mark.parametrize("trusted", [False, True])
def test_a_notebook_opened_again_shows_the_picture(
    page: Any, lab: tuple[str, Path], outputs: dict[str, str], trusted: bool
) -> None:
    address, folder = lab
    name = f"trusted-{trusted}.ipynb"
    made = notebook(outputs)
    made.cells[0].metadata["trusted"] = trusted
    nbformat.write(made, folder / name)
    page.goto(f"{address}/lab/tree/{name}?reset")
    box = page.locator(".jp-OutputArea-output .llmsim-graph, .jp-OutputArea-output img").first
    box.wait_for(timeout=60_000)
    if trusted:
        page.evaluate("() => void window.jupyterapp.commands.execute('notebook:trust')")
        page.locator(".jp-Dialog button.jp-mod-accept").click()
        page.locator(".llmsim-graph svg").wait_for(timeout=60_000)
    else:
        picture = page.locator(".jp-OutputArea-output img")
        assert picture.evaluate("image => image.naturalWidth") > 300
        assert "zoom" not in page.locator(".jp-OutputArea-output").first.inner_text()
        assert "Qwen/Qwen3-0.6B" in picture.get_attribute("alt")
