"""Serialises an ElementTree as SVG."""

from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"


def to_svg(root: ElementTree.Element) -> str:
    """The SVG text of an element; its tags lose their namespace in place.

    SVG elements are written without a prefix by stripping the namespace, because
    `ElementTree.register_namespace` would change the whole process.
    """
    root.set("xmlns", SVG)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    return ElementTree.tostring(root, encoding="unicode")
