"""Converts the SVG that Graphviz writes to PNG or PDF with matplotlib."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from llmsim_magic.views.plots.plot import render_figure
from llmsim_magic.views.svg_markup import SVG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_POINTS_PER_INCH = 72
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TRANSLATION = re.compile(r"translate\(([-\d.]+)[ ,]+([-\d.]+)\)")
_FONT_SCALE = 0.87  # DejaVu Sans is wider than Helvetica, for which the boxes were laid out
_MAX_PIXELS = 30_000  # of a side: more than that matplotlib does not draw

Point = tuple[float, float]


def convert_svg(svg: bytes, fmt: str) -> bytes:
    """The drawing in another format.

    Args:
        svg: Graphviz's own SVG: paths of cubic curves, polygons, polylines, ellipses and texts.
        fmt: a format that matplotlib writes: `png` or `pdf`.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - Graphviz's own output
    return render_figure(lambda: _figure(root, fmt), "graph", fmt)


def _figure(root: ElementTree.Element, fmt: str) -> "Figure":
    from matplotlib.figure import Figure

    left, top, width, height = map(float, root.get("viewBox", "").split())
    inches = (width / _POINTS_PER_INCH, height / _POINTS_PER_INCH)
    # `render_figure` draws 144 dots per inch.
    shrink = min(1.0, _MAX_PIXELS / (144 * max(inches))) if fmt == "png" else 1.0
    figure = Figure(figsize=(inches[0] * shrink, inches[1] * shrink))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(left, left + width)
    axes.set_ylim(top + height, top)
    graph = root.find(f"{{{SVG}}}g")
    if graph is not None:
        found = _TRANSLATION.search(graph.get("transform", ""))
        origin = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
        for part in graph.iter():
            _add(axes, part, origin, shrink)
    return figure


def _add(axes: "Axes", part: ElementTree.Element, origin: Point, shrink: float) -> None:
    tag = part.tag.removeprefix(f"{{{SVG}}}")
    if tag == "text":
        _add_text(axes, part, origin, shrink)
    patch = _patch(tag, part, origin)
    if patch is None:
        return
    patch.set(
        facecolor=_colour(part.get("fill", "black")),
        edgecolor=_colour(part.get("stroke", "none")),
        linewidth=float(part.get("stroke-width", "1")) * shrink,
        linestyle=_line_style(part.get("stroke-dasharray")),
    )
    axes.add_patch(patch)


def _patch(tag: str, part: ElementTree.Element, origin: Point) -> "Patch | None":
    from matplotlib.patches import Ellipse, PathPatch, Polygon
    from matplotlib.path import Path

    if tag in ("polygon", "polyline"):
        corners = list(_points(part.get("points", ""), origin))
        return Polygon(corners, closed=tag == "polygon")
    if tag == "ellipse":
        centre = (_number(part, "cx") + origin[0], _number(part, "cy") + origin[1])
        return Ellipse(centre, 2 * _number(part, "rx"), 2 * _number(part, "ry"))
    if tag == "path":
        corners = list(_points(part.get("d", ""), origin))
        codes = [Path.MOVETO, *[Path.CURVE4] * (len(corners) - 1)]
        return PathPatch(Path(corners, codes))
    return None


def _add_text(axes: "Axes", part: ElementTree.Element, origin: Point, shrink: float) -> None:
    anchors = {"start": "left", "middle": "center", "end": "right"}
    axes.text(
        _number(part, "x") + origin[0],
        _number(part, "y") + origin[1],
        # A dollar sign would begin a formula.
        (part.text or "").replace("$", r"\$"),
        fontsize=float(part.get("font-size", "10")) * _FONT_SCALE * shrink,
        color=part.get("fill", "black"),
        ha=anchors[part.get("text-anchor", "start")],
        va="baseline",
    )


def _points(text: str, origin: Point) -> Iterator[Point]:
    numbers = iter(map(float, _NUMBER.findall(text)))
    return ((x + origin[0], y + origin[1]) for x, y in zip(numbers, numbers, strict=True))


def _number(part: ElementTree.Element, name: str) -> float:
    return float(part.get(name, "0"))


def _colour(name: str) -> str:
    return "none" if name == "transparent" else name


def _line_style(dashes: str | None) -> Any:
    return "solid" if dashes is None else (0, [float(part) for part in dashes.split(",")])
