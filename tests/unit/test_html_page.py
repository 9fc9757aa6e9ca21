"""Pages as HTML: headlines, folded tables, columns by width, charts, warnings and notes."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

import llmsim_magic as llmsim
from llmsim_magic.notebook.arguments import parse_line
from llmsim_magic.simulate.answer import answer
from llmsim_magic.views.charts.chart import Bar, BarChart, Card, Fact, Piece
from llmsim_magic.views.headlines import sizing_figures
from llmsim_magic.views.pages.html_page import as_html, as_page
from llmsim_magic.views.section import Figure, Page, Part, Section
from tests.helpers import small_models

_BOX_PX = 986  # of an output of JupyterLab whose window is 1440 pixels wide


def shown(*sections: Section, **page: object) -> str:
    part = Part("part", "Part", "A part", (), sections)
    return as_html(Page("A page", (part,), **page), has_script=False)  # type: ignore[arg-type]


class _Balance(HTMLParser):
    """Fails where an element ends that is not open."""

    _EMPTY = frozenset({"br", "input", "meta", "img", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self._EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._EMPTY:
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    "line",
    [
        "gpt2 --summary --ops --costs --memory --multi-config",
        "gpt2 --costs --hardware H100,L4 --context 64",
        "gpt2 --compare distilgpt2",
        "gpt2 --multi-config --batch 1,2,3,4,5,6,7 --context 8,16",
        "gpt2 --hardware all",
        "gpt2 --hardware all --compare distilgpt2 --deps",
        "bert-base-uncased --multi-config --costs --hardware H100",
        "gpt2 --multi-config --batch 2 --context 4 --phase decode",
        "gpt2 --costs --ops --memory --hardware H100 --runtime vllm",
        "Qwen/Qwen3-0.6B --ops --costs --hardware H100 --context 8 --pp 2",
    ],
)
def test_a_page_is_well_formed_and_small(line: str) -> None:
    page = answer(parse_line(line).request).page()
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    assert len(page) < 1_000_000


def test_what_does_not_fit_is_said_before_everything_else() -> None:
    report = answer(parse_line("meta-llama/Llama-3.1-70B --hardware T4 --dtype float16").request)
    page = report.content()
    assert page.warnings
    assert all(warning.startswith("does not fit: ") for warning in page.warnings)
    html = as_html(page)
    assert html.index('class="warning"') < html.index('class="headline"')
    assert not set(page.warnings) & set(page.notes)
    (first, *_) = page.parts
    assert first.figures[0].is_bad
    assert not any("TTFT" in figure.label for figure in first.figures)
    assert 'class="bar hypothetical"' in html
    assert '<tr class="hypothetical">' in html


@pytest.mark.parametrize("view", ["costs", "ops"])
def test_no_headline_has_the_time_of_what_cannot_run(view: str) -> None:
    line = f"Qwen/Qwen3-32B --{view} --hardware T4 --dtype float16"
    part = answer(parse_line(line).request).content().parts[0]
    assert part.name == view
    assert not any("TTFT" in figure.label for figure in part.figures)
    assert [figure.value for figure in part.figures if figure.is_bad] == ["does not fit"]
    fitting = answer(parse_line(f"gpt2 --{view} --hardware T4 --dtype float16").request)
    assert any("TTFT" in figure.label for figure in fitting.content().parts[0].figures)


def test_whether_it_fits_is_of_the_largest_workload() -> None:
    """Of 1 and 64 sequences of 4,096 tokens, the second do not fit."""
    line = "Qwen/Qwen3-8B --batch 1,64 --context 4096 --hardware L4 --runtime transformers"
    report = answer(parse_line(line).request)
    page = report.content()
    (warning,) = page.warnings
    assert "of prefill, batch 64 × context 4096 on L4" in warning
    (fit,) = report.costing.capacities
    assert (fit.setup.batch, fit.fits) == (64, False)
    verdict = page.parts[0].figures[0]
    assert verdict.is_bad
    assert "batch 64" in verdict.label
    assert list(report.latency.set_index("batch")["fits"]) == [True, False] * 2


def test_a_card_says_where_weights_are_not_stored_in_the_dtype_of_the_pass() -> None:
    """The checkpoint of DeepSeek-V3 has fp8 weights; the pass multiplies bfloat16."""
    for name, is_said in (("deepseek-ai/DeepSeek-V3", True), ("Qwen/Qwen3-0.6B", False)):
        (part,) = answer(parse_line(f"{name} --context 8").request).content().parts
        card = part.sections[0].body
        assert isinstance(card, Card)
        facts = dict(card.groups)["Memory under transformers"]
        (weights,) = (fact for fact in facts if fact.label == "weights and buffers")
        assert (weights.meaning == "as they are stored") == is_said


def test_one_is_singular() -> None:
    line = "gpt2 --multi-config --batch 2 --context 4 --phase decode"
    assert "1 workload" in map(str, answer(parse_line(line).request).content().parts[0].figures)


def test_views_come_in_the_order_in_which_they_are_named() -> None:
    report = answer(parse_line("gpt2 --memory --ops --summary").request)
    assert [part.name for part in report.content().parts] == ["memory", "ops", "summary"]
    html = report.page()
    assert html.index('href="#llmsim-memory"') < html.index('href="#llmsim-summary"')
    only = answer(parse_line("gpt2 --ops").request).page()
    assert "<nav" not in only


def test_a_named_view_comes_before_its_devices_and_devices_before_the_default() -> None:
    named = answer(parse_line("gpt2 --costs --hardware H100").request)
    assert [part.name for part in named.content().parts] == ["costs", "hardware"]
    default = answer(parse_line("gpt2 --hardware H100").request)
    assert [part.name for part in default.content().parts] == ["hardware", "summary"]
    compared = answer(parse_line("gpt2 --compare distilgpt2").request)
    assert compared.content().parts[0].name == "compare"


def test_the_headline_of_a_summary_has_the_figures_that_people_ask_for() -> None:
    report = llmsim.trace("Qwen/Qwen3-0.6B", context=128)
    (part,) = answer(parse_line("Qwen/Qwen3-0.6B").request).content().parts
    said = [str(figure) for figure in part.figures]
    assert said[:3] == ["596 M parameters", "1.19 GB of weights in bfloat16", "156 GFLOPs"]
    assert said[-1] == "14.7 MB of cache"
    assert part.figures[0].exact == "596,049,920 parameters"
    assert report.summary.loc["parameters", "value"] == 596_049_920


def test_repeated_layers_are_one_block_that_says_which_layers_it_is_of() -> None:
    html = as_html(answer(parse_line("Qwen/Qwen3-0.6B --multi-config").request).content())
    table = html.split("<table")[2]
    rows = re.findall(r"<tr[^>]*>", table.split("<tbody>")[1])
    assert 18 <= len(rows) <= 30
    (block,) = [row for row in rows if "block" in row]
    assert 'data-stack="model.layers"' in block
    layers = re.search(r'data-layers="([\d,]+)"', block)
    assert layers is not None
    assert layers[1].split(",") == [str(index) for index in range(28)]
    assert "[B,S,1024] → [B,S,3072]" in table


def test_all_workloads_of_the_default_sweep_fit_a_usual_screen() -> None:
    html = as_html(answer(parse_line("Qwen/Qwen3-0.6B --multi-config").request).content())
    heads = re.findall(r'<th scope="col" class="([^"]*)">((?:prefill|decode) [^<]*)<', html)
    assert len(heads) == 8
    for classes, name in heads:
        width = re.search(r"w(\d+)", classes)
        assert width is None or int(width[1]) <= _BOX_PX, name


def test_columns_are_hidden_where_their_box_is_narrower_than_they_need() -> None:
    table = pd.DataFrame({"path": ["a"], "op": ["Linear"], "flops": [10], "bytes_read": [20]})
    html = shown(Section("T", table))
    widths = [int(found) for found in re.findall(r"wide w(\d+)", html)]
    assert widths == sorted(widths)
    for width in set(widths):
        assert (
            f"@container (max-width:{width}px){{.llmsim table .w{width}{{display:none}}}}" in html
        )


def test_a_rounded_cell_has_its_exact_value() -> None:
    html = shown(Section("T", pd.DataFrame({"op": ["Linear"], "bytes_read": [16_381_470_720]})))
    assert 'title="16,381,470,720">16.4 GB<' in html


def test_more_rows_than_are_shown_are_counted() -> None:
    table = pd.DataFrame({"op": [f"op{i}" for i in range(100)]})
    part = Part("part", "Part", "A part", (), (Section("T", table),))
    html = as_html(Page("A page", (part,)), max_rows=10)
    assert "op9<" in html
    assert "op10<" not in html
    assert "90 more rows" in html


def test_a_bar_is_as_long_as_its_value_and_marks_its_limit() -> None:
    pieces = (Piece("weights", 30.0, "30 B"), Piece("cache", 20.0, "20 B"))
    bars = (Bar("L4", pieces, "50 B of 40 B", limit=40.0), Bar("H100", pieces, "50 B", limit=100.0))
    html = shown(Section("", BarChart("Memory", bars)))
    assert re.findall(r"width:([\d.]+)%;background:var\(--c0\)", html) == ["30.00", "30.00"]
    assert re.findall(r"width:([\d.]+)%;background:var\(--c1\)", html) == ["20.00", "20.00"]
    assert 'class="limit over" style="left:40.00%"' in html
    assert 'class="limit" style="left:100.00%"' in html
    assert 'aria-label="L4: 50 B of 40 B (weights 30 B, cache 20 B)"' in html


def test_many_workloads_are_heat_maps_and_formulas() -> None:
    line = "gpt2 --multi-config --batch 1,2,4,8 --context 1,16,64,128"
    report = answer(parse_line(line).request)
    (part,) = report.content().parts
    html = as_html(report.content())
    assert html.count('class="chart heat"') == 5  # FLOPs and bytes of each phase, and the cache
    shapes = part.sections[-1].body
    assert isinstance(shapes, pd.DataFrame)
    assert set(shapes) <= {"path", "op", "call", "symbolic", "changes"}
    assert report.sweep is not None
    assert len(report.sweep.shapes.columns) > 32
    flops = report.sweep.totals.query("phase == 'decode' and batch == 8 and context == 64")["flops"]
    assert f'title="{flops.iloc[0]:,} FLOPs"' in html


def test_on_a_device_the_heat_maps_have_times() -> None:
    line = "gpt2 --multi-config --batch 1,2,4,8 --context 1,16 --hardware H100"
    html = answer(parse_line(line).request).page()
    assert "Time of prefill" in html
    assert "Time of decode" in html
    assert "Workloads of gpt2 on H100-SXM5-80GB (transformers, eager)" in html  # what they are of


def test_markup_in_names_is_text() -> None:
    evil = "<img src=x onerror=alert(1)>"
    table = pd.DataFrame({"path": [evil], "op": [evil], evil: [evil]})
    card = Card(((evil, (Fact(evil, evil, evil, evil),)),))
    chart = BarChart(
        evil, (Bar(evil, (Piece(evil, 1.0, evil),), evil, limit=2.0, limit_text=evil),)
    )
    sections = tuple(Section(evil, body, evil) for body in (table, card, chart))
    part = Part(evil, evil, evil, (Figure(evil, evil, evil),), sections)
    page = as_page(Page(evil, (part, part), (evil,), (evil,)))
    assert "<img" not in page
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []


def test_a_model_without_layers_or_cache_has_a_page_too() -> None:
    report = llmsim.trace(torch.nn.Linear(4, 4), inputs=torch.ones(2, 4))
    page = report.page()
    assert "<b>20</b> parameters" in page


def test_a_report_on_several_devices_ranks_what_fits_first() -> None:
    report = llmsim.trace(small_models.llama(), context=8, hardware=["L4", "H100"])
    ranked = report.costing.ranked_latency
    of_prefill = ranked[ranked["phase"] == "prefill"]
    assert of_prefill["time_s"].is_monotonic_increasing
    assert sorted(ranked.index) == sorted(report.latency.index)


def test_an_operator_without_outputs_has_no_half_of_a_shape() -> None:
    shapes = ["[1, 8] → [1, 8], [4]", "[1, 8] → none", "[1] → []"]
    table = pd.DataFrame(
        {
            "path": ["a", "b", "c"],
            "op": ["x", "y", "z"],
            "call": [0, 0, 0],
            "prefill 1×8": shapes,
            "symbolic": [pd.NA, pd.NA, pd.NA],
        }
    )
    html = shown(Section("", table))
    assert "none]" not in html
    assert all(f">{text}</td>" in html for text in ("[1,8]", "none", "[]"))


def test_a_device_of_unknown_memory_is_no_device_that_does_not_hold_the_model() -> None:
    sizing = pd.DataFrame(
        {
            "device": ["CPU"],
            "runtime": ["transformers"],
            "launch": ["eager"],
            "fits": pd.array([pd.NA], dtype="boolean"),
            "refusal": [None],
            "decode_s": pd.array([0.25], dtype="Float64"),
        }
    )
    (figure,) = sizing_figures(sizing, ["decode"])
    assert str(figure) == "250 ms fastest decode: CPU, transformers, eager"


def test_text_goes_to_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel, rich would display what it should return."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "gpt2" in llmsim.trace("gpt2", context=4).text()
    assert "596 M parameters" in answer(parse_line("Qwen/Qwen3-0.6B").request).text()
