"""The page of a view, around the interactive part of its tab."""

from dataclasses import replace

from llmsim_magic.notebook.widgets import PageView
from llmsim_magic.simulate.report import Report
from llmsim_magic.views.graphs.graph import Graph
from llmsim_magic.views.pages.html_page import as_html
from llmsim_magic.views.section import Page, Section


class PreparedPage:
    """The page of the report that was prepared last, which is computed once for its display."""

    def __init__(self) -> None:
        self._last: tuple[Report, Page] | None = None

    def prepare(self, report: Report) -> None:
        """Compute the page, with all tables and pictures that it shows."""
        self._last = report, report.content()

    def of(self, report: Report) -> Page:
        """The page of a report, whether or not it was prepared last."""
        last = self._last
        return last[1] if last is not None and last[0] is report else report.content()


class PageParts:
    """What a page has beside the table or graph that its tab shows interactively.

    Attributes:
        above: warnings, headline and pictures of the view, for the top of the tab.
        below: its tables, folded away, other views, and notes, for the bottom.
    """

    def __init__(self, view: str) -> None:
        self._view = view
        self._prepared = PreparedPage()
        self.above, self.below = PageView(), PageView()

    def prepare(self, report: Report) -> None:
        """Compute the page of a report, which `show` then shows."""
        self._prepared.prepare(report)

    def show(self, report: Report) -> None:
        """Show the page of a report whose graphs are shown elsewhere."""
        page = self._prepared.of(report)
        above, below = [], []
        for part in page.parts:
            if part.name != self._view:
                below.append(part)
                continue
            pictures = tuple(each for each in part.sections if not _is_table(each))
            tables = tuple(
                replace(each, title=each.title or part.label, is_detail=True)
                for each in part.sections
                if _is_table(each)
            )
            shown = (each for each in pictures if not isinstance(each.shown(), Graph))
            above.append(replace(part, sections=tuple(shown)))
            below.insert(0, replace(part, title="", figures=(), sections=tables))
        self.above.value = _html(Page(page.title, tuple(above), page.warnings))
        self.below.value = _html(Page(page.title, tuple(below), notes=page.notes))


def _html(page: Page) -> str:
    return as_html(page, has_script=False)


def _is_table(section: Section) -> bool:
    return hasattr(section.shown(), "iloc")  # a heat map has columns too
