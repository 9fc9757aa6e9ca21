"""Times an answer in JupyterLab, from Enter to its complete output in the page.

    python -m benchmarks.browser_times [--runs 3] [--write]

Needs the extras `lab` and `browser`, and chromium. A fresh kernel has loaded the extension and
answered one line for another model. `new model` is the first time that a line is run for its model,
`again` the second: both from the key to the frame in which the output is drawn, the median over
fresh kernels. `--write` puts the table into `browser_times.md` beside this file.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser import notebooks

SWEEP = "--multi-config --batch 1,2,4,8,16 --context 1,16,128,512,1024,2048,4096"
# the line, the options that were asked of another model before, seconds that it may take
LINES = (
    ("Qwen/Qwen3-0.6B", "--multi-config", 0.5, "again"),
    ("Qwen/Qwen3-0.6B", SWEEP, 3.0, "new model"),
    ("Qwen/Qwen3-8B", "--hardware all", 3.0, "new model"),
    ("meta-llama/Llama-3.1-70B", "--tp 4 --memory", 2.0, "new model"),
)
OTHER = "meta-llama/Llama-3.1-8B"
HEAD = ("line", "new model", "again", "target")
# Runs the active cell, and resolves with milliseconds once its output is drawn.
RUN = """number => new Promise(resolve => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = number;
  const cell = notebook.widgets[number], start = performance.now();
  const check = () => {
    const isDone = cell.model.executionState !== 'running' && cell.model.executionCount;
    if (isDone && cell.node.querySelector('.jp-OutputArea-output .llmsim')) {
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
    } else setTimeout(check, 5);
  };
  window.jupyterapp.commands.execute('notebook:run-cell');
  check();
})"""


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that shows a folder."""
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {home: str(folder / f".{home.lower()}") for home in homes}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0",
        "--IdentityProvider.token=", "--ServerApp.allow_root=True",
        "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    log = folder / "lab.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as server,
    ):
        try:
            for _ in range(300):
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                if found:
                    yield found[0]
                    break
                time.sleep(0.2)
        finally:
            server.kill()


def seconds(browser: Any, address: str, folder: Path, model: str, options: str) -> list[float]:
    """Of a line for a new model, and again, in a fresh kernel."""
    lines = (f"{OTHER} {options}", f"{model} {options}", f"{model} {options}")
    cells = [f"%llmsim {line}" for line in lines]
    notebooks.write(folder, "times.ipynb", "%load_ext llmsim_magic", *cells)
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        notebooks.open_lab(page, address, "times.ipynb")
        notebooks.command(page, "notebook:run-cell")
        found = [page.evaluate(RUN, number) / 1000 for number in range(1, len(cells) + 1)]
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    return found[1:]


def rows(runs: int) -> Iterator[tuple[str, ...]]:
    with (
        tempfile.TemporaryDirectory() as name,
        lab(Path(name)) as address,
        sync_playwright() as running,
    ):
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for model, options, limit, what in LINES:
            times = [seconds(browser, address, Path(name), model, options) for _ in range(runs)]
            medians = [statistics.median(each) for each in zip(*times, strict=True)]
            target = f"{what} < {limit:g} s"
            yield f"`{model} {options}`", *(f"{each:.2f} s" for each in medians), target
        browser.close()


def page(runs: int) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *rows(runs)]
    return "\n".join(
        (
            "# Times in a browser",
            "",
            f"`python -m benchmarks.browser_times --write`: medians of {runs} kernels, from Enter "
            f"to the complete output in JupyterLab, on {os.cpu_count()} cores.",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        )
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--write", action="store_true", help="into browser_times.md")
    given = arguments.parse_args()
    text = page(given.runs)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(f"{text}\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
