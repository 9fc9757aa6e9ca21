"""The panel in JupyterLab, from the first run to the saved file."""

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe

import llmsim_magic as llmsim
from tests.browser import notebooks
from tests.browser.notebooks import PanelPage

pytestmark = pytest.mark.browser
OPEN = "%load_ext llmsim_magic"
WIDE = """\
from transformers import GPT2Config, SwitchTransformersConfig
wide = SwitchTransformersConfig(num_experts=4000, d_model=8, d_ff=8, d_kv=4, num_heads=2)
small = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)"""
SMALL = "import llmsim_magic as llmsim; p = llmsim.panel(small); p"
BUSY = """\
import threading, time
def tell():
    for _ in range(50):
        p.status.message = f"at {time.time()}"
        time.sleep(0.1)
threading.Thread(target=tell).start(); print("at work"); time.sleep(6)"""
THREADS = "import threading; print([t.name for t in threading.enumerate() if t.name == 'llmsim'])"


def opened(page: Any, lab: tuple[str, Path], name: str, *cells: str) -> PanelPage:
    """A notebook with a panel, run."""
    address, folder = lab
    notebooks.write(folder, name, *cells)
    notebooks.open_lab(page, address, name)
    notebooks.run_all(page)
    panel = PanelPage(page)
    panel.wait()
    return panel


def seconds(act: Callable[[], object]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


def test_a_model_is_explored_and_what_was_seen_is_kept(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "explore.ipynb", OPEN, "%llmsim")
    assert "choose a model" in panel.status.inner_text()
    panel.model("Qwen/Qwen3-0.6B")
    panel.wait_for("Qwen3ForCausalLM: prefill, batch 1 × context 128")
    panel.visible("[title='596,049,920']", "596 M").wait_for()

    panel.tab("Shapes")
    panel.visible("td", "[1,8,129,128]").wait_for()
    panel.tab("Dependencies")
    panel.visible(".llmsim-graph svg").wait_for()
    panel.tab("Topological")
    panel.visible(".llmsim-graph svg").wait_for()
    panel.tab("Costs")
    panel.visible("td", "scaled_dot_product_attention").wait_for()
    panel.tab("Operators")

    panel.visible(".dt-container tbody tr", "layers.0.self_attn.q_proj").click()
    panel.visible("pre", "operator 5 at modeling_qwen3.py").wait_for()
    panel.visible("g.chosen", "q_proj").wait_for()
    panel.tab("Dependencies")
    assert panel.arrow_heads() > 0  # the hidden twin in the other tab has the same names
    panel.visible('g[data-name="n15"]').click()
    panel.visible("pre", "operator 15 at modeling_qwen3.py").wait_for()
    panel.tab("Operators")
    panel.visible(".dt-container tr.selected", "post_attention_layernorm").wait_for()

    flops = panel.visible("th", "FLOPs")
    flops.click()
    flops.click()
    page.wait_for_timeout(300)
    most = panel.visible(".dt-container tbody tr")
    assert "39.8 G" in most.inner_text()  # the head's
    assert most.locator("td[title='39,829,110,784']").count() == 1
    panel.root.get_by_label("Operator", exact=True).fill("")
    panel.root.get_by_label("Operator", exact=True).press("Enter")
    panel.visible("p", "Select a row").wait_for()
    panel.choose("Phase", "decode")
    panel.visible("td", "311 M").wait_for()
    assert "311 M" in panel.visible(".dt-container tbody tr").inner_text()  # still the most first
    panel.choose("Phase", "prefill")
    panel.wait_for("prefill")

    with page.expect_download() as download:
        panel.button("CSV").click()
    table = pd.read_csv(io.BytesIO(Path(download.value.path()).read_bytes()), index_col="order")
    expected = llmsim.trace("Qwen/Qwen3-0.6B").ops
    assert table["flops"].tolist() == expected["flops"].tolist()
    assert table["input_shapes"].fillna("").tolist() == [
        ", ".join(str(list(shape)) for shape in shapes) for shapes in expected["input_shapes"]
    ]

    panel.model("no/such-model")
    panel.error.filter(has_text="no/such-model").wait_for()
    panel.root.get_by_text("details", exact=True).click()
    panel.visible("pre", "Traceback").wait_for()
    assert panel.root.locator(".widget-tab.llmsim-stale").count() == 1

    panel.model("gpt2")
    panel.wait_for("GPT2LMHeadModel")
    panel.tab("Dependencies")
    panel.visible(".llmsim-graph:has(svg)", "gpt2").wait_for()
    line = panel.root.get_by_label("magic", exact=True)
    line.filter(has_text="%llmsim gpt2 --deps").wait_for()
    page.wait_for_timeout(1000)
    notebooks.save(page)
    _is_read_later(page.context.new_page(), lab)


def _is_read_later(page: Any, lab: tuple[str, Path]) -> None:
    """Where no kernel runs: alive in a notebook that is trusted, a picture in one that is not."""
    address, folder = lab
    outputs = page.locator(".jp-OutputArea-output")
    page.goto(f"{address}/lab/tree/explore.ipynb?reset")
    outputs.locator(".llmsim-graph svg").wait_for(timeout=notebooks.TIMEOUT_MS)

    saved = nbformat.read(folder / "explore.ipynb", as_version=4)
    saved.cells[0].source += "  # changed by somebody else"
    nbformat.write(saved, folder / "foreign.ipynb")
    page.goto(f"{address}/lab/tree/foreign.ipynb?reset")
    picture = outputs.locator("img").first
    picture.wait_for(timeout=notebooks.TIMEOUT_MS)
    assert picture.evaluate("image => image.naturalWidth") > 300
    assert outputs.locator("th", has_text="GPT2Model").count() > 0


def test_a_traced_model_answers_at_once(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "quick.ipynb", OPEN, "%llmsim Qwen/Qwen3-0.6B --ops --panel")
    panel.wait_for("Qwen3ForCausalLM")
    took = []
    for batch in (2, 4, 8):
        panel.root.get_by_role("slider", name="Batch slider").focus()
        for change, phase in (
            (lambda: page.keyboard.press("ArrowRight"), "prefill"),
            (lambda: panel.choose("Phase", "decode"), "decode"),
            (lambda: panel.choose("Phase", "prefill"), "prefill"),
        ):
            tokens = 128 if phase == "prefill" else 1

            def answered(change: Any = change, shape: str = f"[{batch}, {tokens}, 1024]") -> None:
                change()
                panel.visible("td", shape).wait_for()

            took.append(seconds(answered))
    print(f"\na change of a dropdown answers in {statistics.median(took):.3f} s")
    # 0.3 s is the target on an idle machine; a shared one can be three times as slow, while
    # an answer that traced or built the model anew would take several seconds.
    assert statistics.median(took) < 1.5


def test_long_work_is_cancelled_by_the_button_and_by_the_kernels_interrupt(
    page: Any, lab: tuple[str, Path]
) -> None:
    panel = opened(page, lab, "cancel.ipynb", OPEN, WIDE, "%llmsim small --panel", THREADS)
    panel.wait_for("GPT2LMHeadModel")
    panel.model("wide")
    panel.wait_for("building")
    assert panel.root.locator("progress").is_visible()
    panel.button("Trace").click()  # it runs already
    took = []
    for _ in range(3):
        panel.button("Trace").click()
        panel.wait_for("building")
        took.append(seconds(lambda: (panel.button("Cancel").click(), panel.wait_for("cancelled"))))
    print(f"\nCancel answers in {min(took):.3f} s")
    assert min(took) < 0.5  # others may use the machine meanwhile
    assert panel.root.locator(".widget-tab.llmsim-stale").count() == 1

    panel.button("Trace").click()
    panel.wait_for("building")
    page.wait_for_timeout(300)  # the kernel's loop takes the signal
    notebooks.command(page, "notebook:interrupt-kernel")
    panel.wait_for("cancelled")

    panel.model("small")
    panel.wait_for("GPT2LMHeadModel")
    page.locator(".jp-Notebook .jp-Cell").last.click()
    page.wait_for_timeout(1000)
    notebooks.command(page, "notebook:run-cell")
    page.locator(".jp-OutputArea-output", has_text="[]").last.wait_for()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_is_accessible(page: Any, lab: tuple[str, Path], theme: str) -> None:
    panel = opened(page, lab, f"{theme}.ipynb", OPEN, "%llmsim Qwen/Qwen3-0.6B --panel")
    panel.wait_for("Qwen3ForCausalLM")
    page.evaluate(
        "theme => void window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    page.wait_for_timeout(1500)
    for tab in ("Summary", "Operators", "Shapes", "Dependencies", "Costs"):
        panel.tab(tab)
        page.wait_for_timeout(700)
        found = Axe().run(page, context=".llmsim-panel").response["violations"]
        serious = [
            (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert not serious, (theme, tab)


def test_after_a_restart_it_says_to_run_the_cell_again(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "restart.ipynb", OPEN, "%llmsim gpt2 --panel")
    panel.wait_for("GPT2LMHeadModel")
    page.evaluate("""() => void window.jupyterapp.shell.currentWidget.sessionContext.session
      .kernel.restart()""")
    page.wait_for_timeout(4000)
    panel.choose("Phase", "decode")
    panel.wait_for("run this cell again")


def test_it_is_reached_by_the_keyboard_in_order(page: Any, lab: tuple[str, Path]) -> None:
    panel = opened(page, lab, "keys.ipynb", OPEN, "%llmsim gpt2 --memory --panel")
    panel.wait_for("GPT2LMHeadModel")
    panel.root.get_by_label("Model", exact=True).focus()
    names = []
    for _ in range(16):
        names.append(
            page.evaluate("""() => {
          const at = document.activeElement;
          return at.getAttribute('aria-label') || at.labels?.[0]?.textContent || at.textContent;
        }""")
        )
        page.keyboard.press("Tab")
    assert names == [
        "Model", "Trace", "Phase", "Batch", "Batch slider", "Context", "Context slider", "Dtype",
        "Attention", "Head", "Hardware", "Runtime", "Weights", "Cache", "Devices", "Memory",
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")  # to the open tab
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    panel.visible("[role=tab][aria-selected=true]", "Costs").wait_for()
    panel.root.get_by_role("slider", name="Batch slider").focus()
    page.keyboard.press("ArrowRight")
    panel.wait_for("batch 2")


def test_while_a_cell_runs_it_says_that_it_waits(page: Any, lab: tuple[str, Path]) -> None:
    """And goes on to say so, whatever is told of other work."""
    panel = opened(page, lab, "busy.ipynb", OPEN, WIDE, SMALL, BUSY)
    page.get_by_text("at work", exact=True).wait_for(timeout=notebooks.TIMEOUT_MS)
    panel.choose("Phase", "decode")
    panel.wait_for("a cell is running")
    page.wait_for_timeout(1000)
    assert "a cell is running" in panel.status.inner_text()
    panel.wait_for("GPT2LMHeadModel: decode")


def test_notebook_7_shows_it_too(page: Any, lab: tuple[str, Path]) -> None:
    address, folder = lab
    notebooks.write(folder, "seven.ipynb", OPEN, "%llmsim gpt2 --deps --panel")
    page.goto(f"{address}/notebooks/seven.ipynb")
    page.locator(".jp-Notebook .jp-Cell").first.click(timeout=notebooks.TIMEOUT_MS)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
        timeout=notebooks.TIMEOUT_MS
    )
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    panel = PanelPage(page)
    panel.wait()
    panel.wait_for("GPT2LMHeadModel")
    panel.visible(".llmsim-graph svg").wait_for()
    panel.tab("Operators")
    panel.visible(".dt-container tbody tr", "transformer.h.0.attn.c_attn").click()
    panel.visible("g.chosen", "c_attn").wait_for()
