"""The scripts and the style sheet that make a graph in a page interactive."""

from functools import cache
from importlib import resources

_SCRIPTS = ("dagre.min.js", "folding.js", "layout.js", "details.js", "drawing.js")


@cache
def viewer() -> str:
    """JavaScript that defines `makeInteractive(root)`: the graphs inside it come to life."""
    return "\n".join(map(_read, _SCRIPTS))


@cache
def style() -> str:
    """The style sheet of the graphs of a page, in light and dark colours."""
    return _read("viewer.css")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
