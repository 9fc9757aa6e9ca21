"""The table of views: every front door reads it, and displaying a view never traces."""

from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.capture import run
from llmsim_magic.notebook.arguments import parse_line, parser
from llmsim_magic.simulate.answer import answer
from llmsim_magic.simulate.models.workloads import no_tracing
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.view import View
from llmsim_magic.simulate.views import VIEWS
from llmsim_magic.views.graphs.graph import Graph

EVERYTHING = (
    "--summary --ops --deps --topological --costs --memory --hardware H100,all "
    "--compare distilgpt2 --explain transformer.h.0 --context 16"
)


def asked(line: str) -> Report:
    return answer(parse_line(f"distilgpt2 {line}").request)


@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_a_view_has_help_sections_tables_and_a_graph_where_it_says_so(view: View[Report]) -> None:
    report = asked(f"--{view.name} --batch 1 --context 8")
    assert view.help in " ".join(parser().format_help().split())
    assert [shown.name for shown in report.views] == [view.name]
    (part,) = report.content().parts
    assert part.title
    assert part.figures
    assert part.sections
    assert all(section.title for section in part.sections if section.is_detail)
    assert isinstance(report.tables()[view.main_table], pd.DataFrame)
    assert (view.draw is not None) == (view.pane == "graph") == bool(report.drawings)
    assert all(isinstance(graph, Graph) for graph in report.drawings.values())


@pytest.mark.parametrize("line", [EVERYTHING, "--multi-config", "--batch 1,2 --ops --deps"])
def test_displaying_a_report_never_traces(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report = asked(line)
    llmsim.forget()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("traced while displaying")

    monkeypatch.setattr(run, "run", refuse)
    bundle = report._repr_mimebundle_()
    assert report.page()
    assert repr(report)
    assert "<table" in bundle["text/html"]


def test_displaying_a_sweep_never_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = llmsim.sweep("distilgpt2", batch=[1, 2], context=[4, 8])
    llmsim.forget()
    monkeypatch.setattr(run, "run", None)
    assert "to add the formulas" in sweep._repr_mimebundle_()["text/html"]


def test_a_trace_while_displaying_is_an_error() -> None:
    report = llmsim.trace("distilgpt2", context=8)
    assert report.tracer is not None
    with no_tracing(), pytest.raises(RuntimeError, match="not traced yet"):
        report.tracer.trace(report.trace.workload)


def test_what_takes_long_is_computed_with_progress() -> None:
    said: list[str] = []
    answer(parse_line("distilgpt2 --memory --hardware H100 --context 8").request, said.append)
    assert "computing memory" in said
    assert "computing time" in said
