"""Postprocesses Graphviz's SVG: adds tooltips and names, and makes the text compact."""

import re
from collections.abc import Mapping
from functools import partial
from math import hypot
from xml.etree import ElementTree
from zlib import crc32

from llmsim_magic.views.svg_markup import SVG, to_svg

_NUMBER = re.compile(r"-?\d+\.\d+")
# Set once on the root instead of on every text.
_ROOT_ATTRIBUTES = {"text-anchor": "middle", "font-size": "10.00"}
# Fonts with the widths of Helvetica, which the layout assumes.
_FONTS = "Helvetica,Arial,'Liberation Sans','Nimbus Sans',sans-serif"
_LARGE_BYTES = 200_000  # a larger SVG has its coordinates rounded to whole points
_STYLE_ATTRIBUTES = ("fill", "stroke", "stroke-width", "stroke-dasharray")


def postprocess_svg(svg: bytes, title: str, tooltips: Mapping[str, str]) -> str:
    """Add tooltips and names to the SVG and make it compact.

    The attributes of shapes become classes of a style sheet, and arrow heads become markers;
    together they halve the size of a large graph.

    Args:
        svg: what Graphviz wrote.
        title: the text of the whole graph for screen readers.
        tooltips: texts by DOT name: `n3`, `n3->n5`, `cluster_model`. Each part gets its DOT name
            as `data-name`, an edge the names of both ends.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - Graphviz's own output
    root.set("role", "graphics-document document")
    root.set("aria-label", title)
    root.attrib.update(_ROOT_ATTRIBUTES | {"font-family": _FONTS})
    styles = _StyleSheet(f"s{crc32(svg):08x}")
    root.set("class", styles.scope)
    digits = 1 if len(svg) < _LARGE_BYTES else 0
    for group in _iter(root, "g"):
        _set_title(group, title, tooltips)
        if group.get("class") == "edge":
            _use_marker(group, styles)
    for part in _iter(root, "*"):
        part.tail = None
        part.text = part.text.strip() if part.text and part.text.strip() else None
        part.attrib.pop("{http://www.w3.org/XML/1998/namespace}space", None)
        for name in ("d", "points", "x", "y"):
            if name in part.attrib:
                # The end of an edge's path gives the direction of its arrow head.
                places = 1 if name == "d" else digits
                part.set(name, _NUMBER.sub(partial(_rounded, places), part.attrib[name]))
        if part.tag == f"{{{SVG}}}text":
            part.attrib.pop("font-family", None)
            for name, value in _ROOT_ATTRIBUTES.items():
                if part.get(name) == value:
                    del part.attrib[name]
        else:
            styles.move(part)
    root.insert(0, styles.markers())
    root.insert(0, styles.style_element())
    return to_svg(root).replace(" />", "/>")


def _iter(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return list(root.iter(f"{{{SVG}}}{tag}" if tag != "*" else "*"))


def _rounded(digits: int, number: "re.Match[str]") -> str:
    return f"{float(number[0]):.{digits}f}".removesuffix(".0")


def _set_title(group: ElementTree.Element, title: str, tooltips: Mapping[str, str]) -> None:
    element = group.find(f"{{{SVG}}}title")
    group.attrib.pop("id", None)
    if element is None or element.text is None:
        return
    if group.get("class") != "graph":
        # Only the name of an edge contains "->".
        group.set("data-name", element.text.replace("->", " "))
        title = ""
    element.text = tooltips.get(element.text, title)
    if not element.text:
        group.remove(element)


def _use_marker(edge: ElementTree.Element, styles: "_StyleSheet") -> None:
    """Replace an edge's arrow head by a marker of its colour."""
    line, head = edge.find(f"{{{SVG}}}path"), edge.find(f"{{{SVG}}}polygon")
    if line is None or head is None:
        return
    corners = [tuple(map(float, corner.split(","))) for corner in head.get("points", "").split()]
    apex = corners[1]
    middle = [(corners[0][axis] + corners[2][axis]) / 2 for axis in (0, 1)]
    styles.marker_lengths[head.get("fill", "")] = hypot(apex[0] - middle[0], apex[1] - middle[1])
    line.set("marker", head.get("fill", ""))
    edge.remove(head)


class _StyleSheet:
    """One class per distinct style, scoped to one graph of a page."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.marker_lengths: dict[str, float] = {}
        self._names: dict[tuple[tuple[str, str], ...], str] = {}

    def move(self, part: ElementTree.Element) -> None:
        """Move the style attributes of an element into a class."""
        style = {name: part.attrib.pop(name) for name in _STYLE_ATTRIBUTES if name in part.attrib}
        head = part.attrib.pop("marker", None)
        if head is not None:
            style["marker-end"] = f"url(#{self._marker_id(head)})"
        if style:
            name = self._names.setdefault(tuple(style.items()), f"l{len(self._names)}")
            part.set("class", name)

    def style_element(self) -> ElementTree.Element:
        element = ElementTree.Element(f"{{{SVG}}}style")
        element.text = "".join(
            f".{self.scope} .{name}{{{';'.join(f'{key}:{value}' for key, value in style)}}}"
            for style, name in self._names.items()
        )
        return element

    def markers(self) -> ElementTree.Element:
        definitions = ElementTree.Element(f"{{{SVG}}}defs")
        for colour, length in self.marker_lengths.items():
            marker = ElementTree.SubElement(
                definitions,
                f"{{{SVG}}}marker",
                {
                    "id": self._marker_id(colour), "orient": "auto",
                    "markerUnits": "userSpaceOnUse",
                    "markerWidth": f"{length:.1f}", "markerHeight": f"{length:.1f}",
                    "viewBox": "0 0 10 10", "refX": "0", "refY": "5",
                },
            )  # fmt: skip
            ElementTree.SubElement(
                marker, f"{{{SVG}}}path", {"d": "M0,1.5L10,5L0,8.5z", "fill": colour}
            )
        return definitions

    def _marker_id(self, colour: str) -> str:
        return f"{self.scope}-{colour.strip('#')}"
