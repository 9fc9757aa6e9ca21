"""Make the pictures of README and docs anew: `python docs/make_images.py`.

Needs the extra `browser` and chromium. `panel.png` is a screenshot of JupyterLab, made by hand.
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.simulate.api import answer

IMAGES = Path(__file__).parent / "images"
# Options of a line, and the size of its picture in pixels.
PAGES = {
    "summary": ("Qwen/Qwen3-0.6B --summary", (1000, 520)),
    "ops": ("Qwen/Qwen3-0.6B --ops --hardware H100", (1000, 640)),
    "multi-config": ("Qwen/Qwen3-0.6B --multi-config", (1060, 800)),
    "many-workloads": (
        "Qwen/Qwen3-0.6B --multi-config --batch 1,2,4,8,16 --context 1,16,128,512,1024,2048,4096",
        (1060, 620),
    ),
    "costs": ("Qwen/Qwen3-0.6B --costs --hardware H100", (1060, 640)),
    "memory": ("Qwen/Qwen3-8B --memory --hardware H100,L40S --context 32768", (1060, 620)),
    "hardware": ("Qwen/Qwen3-8B --hardware H100,L4 --context 4096", (1060, 640)),
    "misfit": ("meta-llama/Llama-3.1-70B --hardware L40S", (1060, 560)),
    "sizing": ("Qwen/Qwen3-8B --hardware all", (1060, 700)),
    "compare": ("Qwen/Qwen3-8B --compare meta-llama/Llama-3.1-8B", (1060, 760)),
    "explain": (
        "Qwen/Qwen3-0.6B --explain model.layers.0.mlp.up_proj --phase decode --batch 16",
        (900, 380),
    ),
}


def main() -> None:
    """Every picture that the code makes."""
    qwen = llmsim.trace("Qwen/Qwen3-0.6B")
    qwen.dependency_graph().save(IMAGES / "qwen3.svg", overwrite=True)
    qwen.topological_graph(level="module").save(IMAGES / "topological.svg", overwrite=True)
    for name, model in (
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("mamba", "state-spaces/mamba-130m-hf"),
        ("llava", "llava-hf/llava-1.5-7b-hf"),
    ):
        graph = llmsim.trace(model).dependency_graph()
        graph.save(IMAGES / f"{name}.svg", overwrite=True)
    sized = llmsim.trace("Qwen/Qwen3-8B", phase="decode", context=4096, hardware="H100")
    sized.costing.roofline.save(IMAGES / "roofline.svg", overwrite=True)
    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (line, size) in PAGES.items():
            photograph(browser, line, size, IMAGES / f"{name}.png")
        photograph_layers(browser, IMAGES / "graph-layers.png")
        browser.close()
    (IMAGES / ".llmsim-written").unlink(missing_ok=True)


def photograph_layers(browser: Browser, path: Path) -> None:
    """A graph whose layers are drawn one by one, one of them open, coloured by time."""
    report = llmsim.trace("Qwen/Qwen3-0.6B", hardware="H100")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.html"
        html = report.dependency_graph()._repr_html_()
        file.write_text(f"<!doctype html><meta charset=utf-8>{html}", "utf-8")
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(file.as_uri())
        page.locator('[data-chip="model.layers.0"]').click()
        page.locator('g[aria-label^="layers.1 "]').click()
        page.get_by_label("colour by").select_option("time")
        page.locator("g[data-kind=operator]", has_text="q_proj").click()
        page.screenshot(path=path)


def photograph(browser: Browser, line: str, size: tuple[int, int], path: Path) -> None:
    """The upper end of the page that a line's report makes."""
    report = answer(parse_line(line).request)
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(report.to_html(Path(folder) / "report.html").as_uri())
        page.screenshot(path=path)
        page.close()


if __name__ == "__main__":
    main()
