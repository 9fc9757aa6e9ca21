"""Runs, clicks and reads notebooks in JupyterLab."""

import re
from pathlib import Path
from typing import Any

import nbformat

TIMEOUT_MS = 90_000


def write(folder: Path, name: str, *cells: str) -> Path:
    """A notebook of code cells that knows its kernel: a dialog asks for it otherwise."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    file = folder / name
    nbformat.write(made, file)
    return file


def open_lab(page: Any, address: str, name: str) -> None:
    """Open it, and wait for its kernel: the toolbar says idle before there is one."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=TIMEOUT_MS)
    page.wait_for_function(
        """() => {
          const session = window.jupyterapp.shell.currentWidget?.sessionContext;
          return session?.isReady && session.session?.kernel?.status === 'idle';
        }""",
        timeout=TIMEOUT_MS,
    )


def command(page: Any, name: str) -> None:
    """Run a command of JupyterLab, and do not wait for it."""
    page.evaluate("name => void window.jupyterapp.commands.execute(name)", name)


def run_all(page: Any) -> None:
    command(page, "notebook:run-all-cells")


def save(page: Any) -> None:
    command(page, "docmanager:save")
    page.wait_for_function(
        "() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=TIMEOUT_MS
    )


class PanelPage:
    """The panel as its user sees it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.root = page.locator(".llmsim-panel").first

    def wait(self) -> None:
        self.root.wait_for(timeout=TIMEOUT_MS)

    @property
    def status(self) -> Any:
        return self.root.locator(".llmsim-said")

    @property
    def error(self) -> Any:
        return self.root.get_by_role("alert")

    def wait_for(self, said: str) -> None:
        self.status.filter(has_text=re.compile(said)).wait_for(timeout=TIMEOUT_MS)

    def choose(self, label: str, option: str) -> None:
        self.root.get_by_label(label, exact=True).select_option(option)

    def model(self, name: str) -> None:
        field = self.root.get_by_label("Model", exact=True)
        field.fill(name)
        field.press("Enter")

    def tab(self, name: str) -> None:
        self.root.get_by_role("tab", name=name).click()

    def wait_until_current(self) -> None:
        """Wait until the tab shows what is requested, and for the end of the fade of stale ones."""
        self.page.wait_for_timeout(300)
        self.root.locator(":not(.llmsim-stale) > .widget-tab-contents").wait_for()
        self.page.wait_for_timeout(700)

    def theme(self, name: str) -> None:
        """`Light` or `Dark`."""
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
            f"JupyterLab {name}",
        )
        body = self.page.locator(f"body[data-jp-theme-light={str(name == 'Light').lower()}]")
        body.wait_for(state="attached")
        self.page.wait_for_timeout(1500)  # its style sheet

    def visible(self, selector: str, text: str = "") -> Any:
        """The first of its kind that is seen, with that text in it."""
        return self.root.locator(f"{selector}:visible", has_text=text).first

    def arrow_heads(self) -> int:
        """Those lines of the drawing that is seen whose arrow heads are drawn, too."""
        return int(
            self.visible(".llmsim-graph svg").evaluate("""svg => [...svg.querySelectorAll("path")]
              .map(path => getComputedStyle(path).markerEnd.match(/#([^")]+)/)?.[1])
              .filter(id => id && document.getElementById(id)?.getBoundingClientRect
                && document.getElementById(id).closest("svg") === svg).length""")
        )

    def button(self, name: str) -> Any:
        return self.root.get_by_role("button", name=name, exact=True)
