"""Write a drawing's elements as SVG."""

from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"


def element(root: ElementTree.Element) -> str:
    """The text of a drawing, which is taken apart for it.

    SVG's own names have no prefix, and nothing is said to ElementTree, whose table of prefixes is
    the whole process's.
    """
    root.set("xmlns", SVG)
    for part in root.iter():
        part.tag = part.tag.removeprefix(f"{{{SVG}}}")
    return ElementTree.tostring(root, encoding="unicode")
