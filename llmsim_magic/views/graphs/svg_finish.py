"""Finish a laid-out picture: words for people and screen readers, names for scripts, less text."""

import re
from collections.abc import Mapping
from functools import partial
from math import hypot
from xml.etree import ElementTree
from zlib import crc32

from llmsim_magic.views.svg_markup import SVG, element

_NUMBER = re.compile(r"-?\d+\.\d+")
# Said once for the whole picture instead of at every word.
_COMMON = {"text-anchor": "middle", "font-size": "10.00"}
# Of the widths that the layout reckons with, as far as a system has one.
_FONTS = "Helvetica,Arial,'Liberation Sans','Nimbus Sans',sans-serif"
_LARGE = 200_000  # bytes; so large a picture does without tenths of a point
_LOOKS = ("fill", "stroke", "stroke-width", "stroke-dasharray")


def finish_svg(svg: bytes, title: str, tips: Mapping[str, str]) -> str:
    """The picture with each part's tip as its title, which a browser shows and a reader reads.

    `tips` go by the names that the layout was given: `n3`, `n3->n5`, `cluster_model`. A part
    keeps its name as `data-name`, a line those of both its ends. How parts look stands in a style
    sheet, arrow heads are markers: both halve what a large picture takes.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - the layout's own output
    root.set("role", "graphics-document document")
    root.set("aria-label", title)
    root.attrib.update(_COMMON | {"font-family": _FONTS})
    looks = _Looks(f"s{crc32(svg):08x}")
    root.set("class", looks.scope)
    digits = 1 if len(svg) < _LARGE else 0
    for group in _all(root, "g"):
        _name(group, title, tips)
        if group.get("class") == "edge":
            _point(group, looks)
    for part in _all(root, "*"):
        part.tail = None
        part.text = part.text.strip() if part.text and part.text.strip() else None
        part.attrib.pop("{http://www.w3.org/XML/1998/namespace}space", None)
        for name in ("d", "points", "x", "y"):
            if name in part.attrib:
                places = 1 if name == "d" else digits  # a line's end tells where its head points
                part.set(name, _NUMBER.sub(partial(_rounded, places), part.attrib[name]))
        if part.tag == f"{{{SVG}}}text":
            part.attrib.pop("font-family", None)
            for name, value in _COMMON.items():
                if part.get(name) == value:
                    del part.attrib[name]
        else:
            looks.move(part)
    root.insert(0, looks.markers())
    root.insert(0, looks.sheet())
    return element(root).replace(" />", "/>")


def _all(root: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return list(root.iter(f"{{{SVG}}}{tag}" if tag != "*" else "*"))


def _rounded(digits: int, number: "re.Match[str]") -> str:
    return f"{float(number[0]):.{digits}f}".removesuffix(".0")


def _name(group: ElementTree.Element, title: str, tips: Mapping[str, str]) -> None:
    said = group.find(f"{{{SVG}}}title")
    group.attrib.pop("id", None)
    if said is None or said.text is None:
        return
    if group.get("class") != "graph":
        group.set("data-name", said.text.replace("->", " "))  # only a line's has an arrow
        title = ""
    said.text = tips.get(said.text, title)
    if not said.text:
        group.remove(said)


def _point(edge: ElementTree.Element, looks: "_Looks") -> None:
    """Replace an arrow head by a marker of its colour at the line's end."""
    line, head = edge.find(f"{{{SVG}}}path"), edge.find(f"{{{SVG}}}polygon")
    if line is None or head is None:
        return
    corners = [tuple(map(float, corner.split(","))) for corner in head.get("points", "").split()]
    tip = corners[1]
    middle = [(corners[0][axis] + corners[2][axis]) / 2 for axis in (0, 1)]
    looks.heads[head.get("fill", "")] = hypot(tip[0] - middle[0], tip[1] - middle[1])
    line.set("marker", head.get("fill", ""))
    edge.remove(head)


class _Looks:
    """A class for each way that parts look, within one picture of a page."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.heads: dict[str, float] = {}
        self._names: dict[tuple[tuple[str, str], ...], str] = {}

    def move(self, part: ElementTree.Element) -> None:
        """Take how a part looks from its attributes into the style sheet."""
        look = {name: part.attrib.pop(name) for name in _LOOKS if name in part.attrib}
        head = part.attrib.pop("marker", None)
        if head is not None:
            look["marker-end"] = f"url(#{self._id(head)})"
        if look:
            name = self._names.setdefault(tuple(look.items()), f"l{len(self._names)}")
            part.set("class", name)

    def sheet(self) -> ElementTree.Element:
        style = ElementTree.Element(f"{{{SVG}}}style")
        style.text = "".join(
            f".{self.scope} .{name}{{{';'.join(f'{key}:{value}' for key, value in look)}}}"
            for look, name in self._names.items()
        )
        return style

    def markers(self) -> ElementTree.Element:
        found = ElementTree.Element(f"{{{SVG}}}defs")
        for colour, length in self.heads.items():
            marker = ElementTree.SubElement(
                found,
                f"{{{SVG}}}marker",
                {
                    "id": self._id(colour), "orient": "auto", "markerUnits": "userSpaceOnUse",
                    "markerWidth": f"{length:.1f}", "markerHeight": f"{length:.1f}",
                    "viewBox": "0 0 10 10", "refX": "0", "refY": "5",
                },
            )  # fmt: skip
            ElementTree.SubElement(
                marker, f"{{{SVG}}}path", {"d": "M0,1.5L10,5L0,8.5z", "fill": colour}
            )
        return found

    def _id(self, colour: str) -> str:
        return f"{self.scope}-{colour.strip('#')}"
