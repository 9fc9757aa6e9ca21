"""What a reader of the panel sees, at three widths and in both themes: nothing is cut or faint."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.notebooks import PanelPage
from tests.browser.page_checks import layout_faults, low_contrasts
from tests.browser.test_panel import OPEN, opened

pytestmark = pytest.mark.browser
SIZES = ((1440, 900), (1024, 800), (900, 900))
TABS = ("Summary", "Operators", "Shapes", "Dependencies", "Topological", "Costs", "Memory")
LINE = "%llmsim Qwen/Qwen3-0.6B --hardware H100 --panel"


def resize(page: Any, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(500)


def each_tab(panel: PanelPage) -> Any:
    """The names of the tabs, each shown."""
    for name in TABS:
        panel.tab(name)
        panel.wait_until_current()
        yield name


def test_no_control_is_cut_at_any_width(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "widths.ipynb", OPEN, LINE)
    panel.wait_for("Qwen3ForCausalLM")
    for width, height in SIZES:
        resize(page, width, height)
        for name in each_tab(panel):
            assert layout_faults(panel.root) == [], (width, name)
            beyond = panel.root.evaluate("""panel => [...panel.querySelectorAll(
                '.widget-tab-contents :is(.box, img, .dt-container, .llmsim-graph)')]
              .filter(e => e.checkVisibility())
              .filter(e => e.getBoundingClientRect().right > panel.getBoundingClientRect().right)
              .map(e => e.className || e.tagName)""")
            assert beyond == [], (width, name)


def test_an_extreme_size_is_seen_in_full_and_adds_no_scroll_bar(
    page: Any, lab: tuple[str, Path]
) -> None:
    panel = opened(page, lab, "extreme.ipynb", OPEN, "%llmsim gpt2 --panel")
    panel.wait_for("GPT2LMHeadModel")
    for label in ("Context", "Batch"):
        field = panel.root.get_by_label(label, exact=True)
        field.fill("2147483647")
        field.press("Enter")
        panel.error.filter(has_text="2147483647").wait_for()
    for width, height in SIZES:
        resize(page, width, height)
        assert layout_faults(panel.root) == [], width
    field.fill("0")
    field.press("Enter")
    panel.error.filter(has_text="--batch must be at least 1, not '0'").wait_for()
    assert field.input_value() == "0"
    for name in ("CSV", "HTML", "Save"):
        assert panel.button(name).is_disabled()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_texts_labels_and_placeholders_stand_out(
    page: Any, lab: tuple[str, Path], theme: str
) -> None:
    panel = opened(page, lab, f"contrast-{theme}.ipynb", OPEN, LINE)
    panel.wait_for("Qwen3ForCausalLM")
    panel.theme(theme)
    for name in each_tab(panel):
        assert low_contrasts(panel.root) == [], name
    panel.tab("Operators")
    panel.visible(".dt-container tbody tr", "layers.0.self_attn.q_proj").click()
    panel.visible("pre", "operator 5 at").wait_for()
    panel.root.get_by_label("Operator", exact=True).fill("seven")
    panel.root.get_by_label("Operator", exact=True).press("Enter")
    panel.visible(".llmsim-error", "operator must be a whole number").wait_for()
    assert low_contrasts(panel.root) == []


def brightness(locator: Any) -> float:
    """The mean of the pixels of an element as it is painted, from 0 to 1."""
    picture = Image.open(io.BytesIO(locator.screenshot())).convert("L")
    return float(np.asarray(picture).mean() / 255)


def test_plots_and_graphs_are_dark_in_the_dark_theme(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "dark.ipynb", OPEN, LINE)
    panel.wait_for("Qwen3ForCausalLM")
    for theme in ("Light", "Dark"):
        panel.theme(theme)
        for tab, selector in {"Costs": "img", "Dependencies": ".llmsim-graph"}.items():
            panel.tab(tab)
            panel.wait_until_current()
            level = brightness(panel.visible(selector))
            assert (level > 0.7) if theme == "Light" else (level < 0.35), (theme, tab, level)


def test_a_graph_has_the_width_of_its_tab(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "wide.ipynb", OPEN, "%llmsim gpt2 --deps --panel")
    panel.wait_for("GPT2LMHeadModel")
    for width, height in SIZES:
        resize(page, width, height)
        tab = panel.root.locator(".widget-tab-contents").bounding_box()
        graph = panel.visible(".llmsim-stage svg").bounding_box()
        assert graph["width"] > 0.9 * tab["width"], width


def test_times_are_sorted_by_seconds_and_not_by_their_texts(
    page: Any, lab: tuple[str, Path]
) -> None:
    panel = opened(page, lab, "times.ipynb", OPEN, LINE.replace("--panel", "--ops --panel"))
    panel.wait_for("Qwen3ForCausalLM")
    head = panel.visible("th", "time")
    head.click()
    page.wait_for_timeout(300)
    head.click()
    page.wait_for_timeout(300)
    rows = panel.root.locator(".dt-container tbody tr:visible")
    exact = rows.evaluate_all("""rows => rows.map(row => {
      const heads = [...row.closest('table').tHead.rows[0].cells];
      const place = heads.findIndex(head => head.innerText.includes('time'));
      return parseFloat(row.cells[place].title);
    })""")
    assert len(exact) > 5
    assert exact == sorted(exact, reverse=True)
    assert exact[0] > 1e-5
