"""The roofline plot: content, accessibility and no side effects on matplotlib."""

import subprocess
import sys
from base64 import b64decode
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline_points import points
from llmsim_magic.analyses.time.stored_dtypes import stored_dtypes
from llmsim_magic.catalog import accelerators
from llmsim_magic.records.errors import CannotPredict, InvalidValue
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.plots.roofline_figure import spread_labels
from llmsim_magic.views.plots.roofline_plot import operator_dots, roofline_plot
from tests.helpers import small_models

H100 = accelerators.find("H100-SXM5-80GB")
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script>&amp;$\\frac{1}{0}$\x1b[0m\nname'


@cache
def traced(name: str = "llama", phase: str = "decode") -> Trace:
    return llmsim.trace(small_models.CONFIGS[name](), phase=phase, batch=2, context=7).trace


@cache
def timed(name: str = "llama", phase: str = "decode", regime: Any = "graph") -> PassTime:
    return latency(traced(name, phase), H100, regime=regime)


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in read(svg).iter(f"{SVG}text")]


def renamed(trace: Trace, name: str) -> Trace:
    """The same pass, whose model and operators have another name."""
    record = trace.recorded
    operators = tuple(
        type(each)(each.path, name, "function", each.inputs, each.outputs, each.source, each.held)
        for each in record.operators
    )
    model = replace(trace.model, name=name)
    return replace(trace, model=model, recorded=replace(record, operators=operators))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(small_models.CONFIGS))
@pytest.mark.parametrize("regime", ["graph", "eager"])
def test_every_architecture_is_drawn(name: str, regime: Any) -> None:
    """Encoders, which have no decode step, among them."""
    trace = traced(name, "prefill")
    plot = roofline_plot(trace, timed(name, "prefill", regime))
    assert read(plot.svg).tag == f"{SVG}svg"
    assert any("FLOPs per byte" in text for text in words(plot.svg))


def test_readers_are_told_what_eyes_see() -> None:
    plot = roofline_plot(traced(), timed())
    root = read(plot.svg)
    assert root.get("role") == "img"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == root.get("aria-label")
    assert str(title.text).startswith(plot.title)
    assert "ms" in str(title.text) or "µs" in str(title.text)
    told = [t.text for group in root.iter(f"{SVG}g") for t in group.findall(f"{SVG}title")]
    assert len(told) == len(operator_dots(traced(), timed()))
    assert all("FLOP/s" in str(text) and "binds" in str(text) for text in told)


def test_layers_that_repeat_are_drawn_once_and_counted() -> None:
    drawn = operator_dots(traced(), timed())
    assert sum(dot.count for dot in drawn) == len(points(timed()))
    assert {dot.count for dot in drawn} == {1, 2}  # the head, and what is in both layers
    spent = sum(timed().operators[point.order].seconds for point in points(timed()))
    assert sum(dot.share for dot in drawn) == pytest.approx(spent / timed().seconds)


def test_every_dot_lies_in_its_bar() -> None:
    points = [dot.point for dot in operator_dots(traced(), timed())]
    assert all(point.low <= point.flops_per_s <= point.high for point in points)


def test_it_names_the_device_the_units_and_each_class() -> None:
    seen = words(roofline_plot(traced(), timed()).svg)
    assert any("H100-SXM5-80GB" in text for text in seen)
    assert "predicted performance (FLOP/s)" in seen
    for kind in {dot.kind for dot in operator_dots(traced(), timed())}:
        assert kind in seen
    assert any(text.startswith("memory: 3.35 TB/s") for text in seen)
    assert any("fp32" in text and "TFLOP/s" in text for text in seen)


def test_weights_that_are_multiplied_in_fp8_are_a_class_of_their_own() -> None:
    time = latency(traced(), H100, stored=stored_dtypes(traced(), H100, "fp8"))
    assert "matmul fp8" in words(roofline_plot(traced(), time).svg)


def test_hostile_names_are_text_and_nothing_else() -> None:
    trace = renamed(traced(), HOSTILE)
    plot = roofline_plot(trace, latency(trace, H100))
    root = read(plot.svg)
    assert not list(root.iter(f"{SVG}script"))
    assert "<script>" not in plot.svg
    assert any('<script>alert("1")</script>' in text for text in words(plot.svg))
    assert "\x1b" not in plot.svg
    shown = plot._repr_html_()
    assert "<script>" not in shown
    assert shown.count("<img") == 1


def test_a_name_in_another_script_is_drawn_without_a_warning() -> None:
    trace = renamed(traced(), "模型 🦙")
    assert any("模型" in text for text in words(roofline_plot(trace, latency(trace, H100)).svg))


def test_a_pass_without_products_is_roofs_alone() -> None:
    nothing = Record(storages=(), tensors=(), kernels=(), operators=(), calls=(), results=())
    trace = replace(traced(), modules=(), parameters=(), recorded=nothing, replays=())
    assert "no operator has FLOPs" in words(roofline_plot(trace, latency(trace, H100)).svg)


def test_a_device_without_a_roof_is_one_line_that_names_it() -> None:
    unknown = replace(timed(), accelerator=replace(H100, bandwidth_bytes_per_s=None))
    with pytest.raises(CannotPredict, match="H100-SXM5-80GB") as caught:
        roofline_plot(traced(), unknown)
    assert "\n" not in str(caught.value)


def test_a_plot_shows_itself_as_an_image() -> None:
    plot = roofline_plot(traced(), timed())
    shown = plot._repr_html_()
    data = shown.partition("base64,")[2].partition('"')[0]
    assert b64decode(data).decode() == plot.svg
    assert "background:white" in shown
    assert plot.title in repr(plot)


def test_a_plot_saves_what_it_shows(tmp_path: Path) -> None:
    plot = roofline_plot(traced(), timed())
    assert plot.save(tmp_path / "roof.svg").read_text("utf-8") == plot.svg
    assert plot.save(tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidValue, match=r"\.svg, \.png"):
        plot.save(tmp_path / "roof.bmp")


def test_the_same_pass_is_the_same_picture() -> None:
    assert roofline_plot(traced(), timed()) == roofline_plot(traced(), timed())


def test_drawing_leaves_matplotlib_as_it_was_and_no_style_reaches_it() -> None:
    import matplotlib

    plain = roofline_plot(traced(), timed()).svg
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 40, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        assert roofline_plot(traced(), timed()).svg == plain
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_at_first_use_and_pyplot_never() -> None:
    code = (
        "import sys, llmsim_magic.views.plots.roofline_plot as r\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from llmsim_magic.views.plots.plot import render_figure\n"
        "from matplotlib.figure import Figure\n"
        "render_figure(Figure, 'salt', 'svg')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "heights", [[5.0], [5.0, 5.0, 5.0], [0.0, 1.0, 90.0], [100.0, 99.0, 98.0, 50.0, 3.0]]
)
def test_names_are_moved_apart_within_the_frame_and_keep_their_order(heights: list[float]) -> None:
    placed = spread_labels(heights, 10.0, 10.0, 90.0)
    falling = sorted(placed, reverse=True)
    assert all(above - below >= 10 for above, below in pairwise(falling))
    assert all(10 <= height <= 90 for height in placed)
    for a, one in zip(heights, placed, strict=True):
        for b, other in zip(heights, placed, strict=True):
            assert (one - other) * (a - b) >= 0
