"""What a person sees of each view in JupyterLab, in the first screen of two windows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import notebooks

pytestmark = pytest.mark.browser
VIEWS = {
    "summary": "Qwen/Qwen3-0.6B",
    "ops": "Qwen/Qwen3-0.6B --ops",
    "multi-config": "Qwen/Qwen3-0.6B --multi-config",
    "many": "Qwen/Qwen3-0.6B --multi-config --batch 1,2,4,8,16 --context 1,16,128,512,1024,2048",
    "deps": "Qwen/Qwen3-0.6B --deps",
    "topological": "Qwen/Qwen3-0.6B --topological",
    "costs": "Qwen/Qwen3-0.6B --costs --hardware H100",
    "memory": "Qwen/Qwen3-0.6B --memory --hardware L4",
    "hardware": "Qwen/Qwen3-0.6B --hardware H100",
    "misfit": "Qwen/Qwen3-32B --hardware L4",
    "hardware all": "gpt2 --hardware all",
    "compare": "Qwen/Qwen3-0.6B --compare Qwen/Qwen3-1.7B",
}
PICTURES = ".llmsim .chart, .llmsim .card, .llmsim .llmsim-graph svg, .llmsim .inbar"
WINDOWS = ((1440, 900), (900, 900))
_READABLE = 4.5  # contrast of text, by WCAG 2 AA


@pytest.fixture(scope="module")
def asked(browser: Any, lab: tuple[str, Path]) -> Iterator[Any]:
    """A page of a notebook with a cell for each view, all run."""
    address, folder = lab
    cells = [f"%llmsim {line}" for line in VIEWS.values()]
    notebooks.write(folder, "views.ipynb", "%load_ext llmsim_magic", *cells)
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        notebooks.open_lab(page, address, "views.ipynb")
        for number in range(len(cells) + 1):
            _go_to(page, number)
            notebooks.command(page, "notebook:run-cell")
            page.wait_for_function(
                """number => {
                  const {model} = window.jupyterapp.shell.currentWidget.content.widgets[number];
                  return model.executionCount && (number === 0 || model.outputs.length);
                }""",
                arg=number,
                timeout=notebooks.TIMEOUT_MS,
            )
        yield page


def _go_to(page: Any, number: int) -> None:
    page.evaluate(
        """async number => {
          const notebook = window.jupyterapp.shell.currentWidget.content;
          notebook.activeCellIndex = number;
          await notebook.scrollToItem(number, 'start');
        }""",
        number,
    )
    page.wait_for_timeout(400)


def _cell(page: Any, number: int) -> Any:
    return page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{number}']")


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: f"{window[0]}x{window[1]}")
@pytest.mark.parametrize("view", VIEWS)
def test_the_answer_is_in_the_first_screen(asked: Any, view: str, window: tuple[int, int]) -> None:
    width, height = window
    asked.set_viewport_size({"width": width, "height": height})
    number = list(VIEWS).index(view) + 1
    _go_to(asked, number)
    cell = _cell(asked, number)
    headline = cell.locator(".headline").first
    assert headline.bounding_box()["y"] < height
    picture = cell.locator(PICTURES).first
    box = picture.bounding_box()
    assert box["y"] < height - 60
    assert box["width"] > 0
    for table in cell.locator(".box:visible").all():
        sizes = table.evaluate("each => [each.scrollWidth, each.clientWidth]")
        assert sizes[0] <= sizes[1], view
    row = cell.locator(".box tbody tr:visible").first
    if view not in ("summary", "deps", "topological", "many"):
        assert row.bounding_box()["y"] < height
    if view == "misfit":
        assert cell.locator(".warning").first.bounding_box()["y"] < headline.bounding_box()["y"]


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_text_can_be_read_in_both_themes(asked: Any, theme: str) -> None:
    asked.set_viewport_size({"width": 1440, "height": 900})
    asked.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    asked.wait_for_timeout(1500)
    for number in range(1, len(VIEWS) + 1):
        _go_to(asked, number)
        faint = asked.evaluate(_FAINT_TEXTS, _READABLE)
        assert not faint, (list(VIEWS)[number - 1], faint[:5])


# Texts whose contrast with what is behind them is too small: text, contrast.
_FAINT_TEXTS = """least => {
  const light = color => {
    const parts = color.match(/[\\d.]+/g).map(Number);
    const isUnit = color.startsWith("color(");
    const linear = parts.slice(0, 3).map(part => {
      const value = isUnit ? part : part / 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      const alpha = color.startsWith("rgba") ? Number(color.match(/[\\d.]+/g)[3]) : 1;
      if (alpha > 0.9) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = document.querySelectorAll(".llmsim :is(b, span, p, td, th, h3, h4, h5, li, dt, a)");
  const found = [];
  for (const element of texts) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(style.color), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < least) found.push([element.textContent.trim().slice(0, 40), contrast]);
  }
  return found;
}"""


def test_folded_layers_open_one_by_one(asked: Any) -> None:
    asked.set_viewport_size({"width": 1440, "height": 900})
    number = list(VIEWS).index("ops") + 1
    _go_to(asked, number)
    table = _cell(asked, number).locator(".box table").first
    before = table.locator("tr:visible").count()
    fold = table.locator(".fold").first
    assert fold.inner_text() == "×28"
    fold.click()
    heads = table.locator("tr.block[data-layer]:visible")
    assert heads.count() == 28
    assert heads.nth(3).locator(".path span").first.inner_text() == "model.layers.3"
    heads.nth(3).locator(".fold").click()
    opened = table.locator("tr[data-owner]:visible")
    assert opened.count() == before - 8  # one layer: without the head, its block, and outside rows
    assert opened.filter(has_text="self_attn.q_proj").count() == 1
    fold.click()
    assert table.locator("tr:visible").count() == before


def test_hidden_columns_come_on_demand(asked: Any) -> None:
    asked.set_viewport_size({"width": 900, "height": 900})
    number = list(VIEWS).index("multi-config") + 1
    _go_to(asked, number)
    box = _cell(asked, number).locator(".box").nth(1)
    heads = box.locator("thead th:visible")
    few = heads.count()
    _cell(asked, number).locator(".choice").nth(1).click()
    assert heads.count() > few
    assert box.evaluate("each => each.scrollWidth > each.clientWidth")
    first = box.locator("tbody th").first
    before = first.bounding_box()["x"]
    box.evaluate("each => each.scrollTo(300, 0)")
    assert first.bounding_box()["x"] == before
    asked.set_viewport_size({"width": 1440, "height": 900})


def test_the_contents_lead_to_each_view(asked: Any) -> None:
    asked.set_viewport_size({"width": 1440, "height": 900})
    number = list(VIEWS).index("hardware") + 1
    _go_to(asked, number)
    cell = _cell(asked, number)
    names = cell.locator("nav a").all_inner_texts()
    assert names == ["Time", "Summary"]
    cell.locator("nav a").last.click()
    asked.wait_for_timeout(300)
    title = cell.locator("h3").filter(has_text=re.compile("^Summary of"))
    assert 0 <= title.bounding_box()["y"] < 900
