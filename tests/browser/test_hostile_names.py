"""Names that contain markup are never executed by the panel, cells or saved pages."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser import notebooks
from tests.browser.notebooks import PanelPage
from tests.helpers import hostile_names

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
BEGIN = f"""\
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.helpers import hostile_names
model = hostile_names.model(hostile_names.NAMES["all at once"])
%load_ext llmsim_magic"""
SHOWN = (
    "report = %llmsim model --ops --deps --topological --costs --memory --context 5 --hardware H100"
)
SAVED = "print(report.to_html('page.html'), 'is', 'written')"
PANEL = "%llmsim model --panel --context 5 --hardware H100"
# Shown beside them, to know that a script in a name would have been seen.
CONTROL = "from IPython.display import HTML; HTML('<img src=x onerror=window.__control=1>')"
RAN = "() => window.__pwned"
MARKUP = hostile_names.NAMES["end of script"][:40]


@pytest.fixture
def guarded(page: Any) -> Any:
    """A page in which a dialog is a failure."""
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    yield page
    assert dialogs == []


def check_nothing_ran(page: Any) -> None:
    page.wait_for_timeout(500)
    assert [frame.evaluate(RAN) for frame in page.frames] == [None] * len(page.frames)
    for tag in ("evil", "script:text-is('window.__pwned=1')", "[onmouseover]", "[onload]"):
        assert page.locator(tag).count() == 0


def test_in_cells_and_in_a_saved_page(guarded: Any, lab: tuple[str, Path]) -> None:
    page, (address, folder) = guarded, lab
    notebooks.write(folder, "cells.ipynb", BEGIN, SHOWN, SAVED, CONTROL)
    notebooks.open_lab(page, address, "cells.ipynb")
    notebooks.run_all(page)
    outputs = page.locator(".jp-OutputArea-output")
    outputs.filter(has_text="page.html is written").wait_for(timeout=notebooks.TIMEOUT_MS)
    page.wait_for_function("() => window.__control === 1", timeout=notebooks.TIMEOUT_MS)
    check_graphs(page, outputs.locator(".llmsim-graph"))
    check_nothing_ran(page)

    saved = page.context.new_page()
    saved.on("dialog", lambda _: pytest.fail("the page opens a dialog"))
    saved.goto((folder / "page.html").as_uri())
    assert MARKUP in saved.title()
    check_graphs(saved, saved.locator(".llmsim-graph"))
    check_nothing_ran(saved)


def check_graphs(page: Any, graphs: Any) -> None:
    """Both are alive, with the name in their nodes and tips, and are searched by it."""
    graphs.first.locator("svg").wait_for(timeout=notebooks.TIMEOUT_MS)
    assert graphs.count() == 2
    for graph in graphs.all():
        assert graph.locator("script, image, a, foreignObject").count() == 0
        node = graph.locator("g.node", has_text=MARKUP).first
        node.scroll_into_view_if_needed()
        node.hover()
        assert MARKUP in (node.locator("title").first.text_content() or "")
        node.click()
        graph.get_by_label("find a node").fill("</script>")
        assert " of " in graph.get_by_role("status").inner_text()
    assert page.locator("td", has_text=MARKUP).count() > 0


def test_in_every_tab_of_the_panel(guarded: Any, lab: tuple[str, Path]) -> None:
    page, (address, folder) = guarded, lab
    notebooks.write(folder, "panel.ipynb", BEGIN, PANEL)
    notebooks.open_lab(page, address, "panel.ipynb")
    notebooks.run_all(page)
    panel = PanelPage(page)
    panel.wait()
    panel.wait_for("prefill, batch 1 × context 5")
    panel.visible("dd", MARKUP).wait_for()
    for tab in ("Shapes", "Costs", "Memory", "Dependencies", "Topological"):
        panel.tab(tab)
        panel.visible("g.node text" if tab in ("Dependencies", "Topological") else "td").wait_for()
        check_nothing_ran(page)
    panel.tab("Operators")
    panel.root.get_by_label("Path", exact=True).fill("</script>")
    panel.root.get_by_label("Path", exact=True).press("Enter")
    row = panel.visible("tbody tr", MARKUP)
    row.hover()
    row.click()
    panel.visible("pre", MARKUP).wait_for()
    panel.visible("g.chosen", MARKUP).hover()
    with page.expect_download() as download:
        panel.button("CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    check_nothing_ran(page)
    panel.model("<img src=x onerror=window.__pwned=1>")
    panel.error.filter(has_text="<img").wait_for()
    check_nothing_ran(page)
