"""A plot that shows itself in a notebook, and saves itself as SVG or PNG."""

import base64
import html
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.exclusive import ExclusiveLock
from llmsim_magic.views.safe_files import resolve_path, write_file
from llmsim_magic.views.svg_markup import SVG, element

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
_LOOK: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}


# Matplotlib's settings are the process's: two threads would put back each other's.
_drawing = ExclusiveLock("a plot is being drawn")


@dataclass(frozen=True)
class Plot:
    """A drawing on white: `svg`, and `title`, which is also what a screen reader says first.

    In a notebook it is shown as an image, which also works where the notebook is not trusted.
    """

    svg: str
    title: str
    drawn: Callable[[str], bytes] = field(repr=False, compare=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write `.svg` or `.png`.

        Raises `InvalidValue` for another ending and for a file that cannot be written, `NotOurs`
        for one that somebody else wrote.
        """
        ending = resolve_path(path).suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue.must_be(
                "path", str(path), "a file ending in ." + ", .".join(FORMATS)
            )
        content = self.svg.encode() if ending == "svg" else self.drawn(ending)
        return write_file(path, content, overwrite=overwrite)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        title = html.escape(self.title, quote=True)
        return (
            f'<img alt="{title}" style="max-width:100%;background:white" '
            f'src="data:image/svg+xml;base64,{data}"/>'
        )

    def __repr__(self) -> str:
        return f"Plot({self.title!r}: .svg, .save(path))"


def drawing(make: "Callable[[], Figure]", salt: str, fmt: str) -> bytes:
    """A figure in a format of matplotlib's, the same bytes each time.

    Whatever style the user chose holds for their own plots, and is theirs again afterwards.
    """
    import matplotlib

    data = io.BytesIO()
    with DeferredInterrupt(), _drawing, matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn by the reader's own.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        matplotlib.rcdefaults()
        look: Any = _LOOK | {"svg.hashsalt": salt}
        matplotlib.rcParams.update(look)
        dated: dict[str, Any] = {"metadata": {"Date": None}} if fmt == "svg" else {}
        make().savefig(data, format=fmt, dpi=144, **dated)
    return data.getvalue()


def readable(svg: bytes, title: str, tips: Mapping[str, str]) -> str:
    """The drawing with its title, and with what its parts say, by the ids that they were given."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib's own output
    root.attrib |= {"role": "img", "aria-label": title, "class": "llmsim-plot"}
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for style in root.iter(f"{{{SVG}}}style"):
        style.text = f".llmsim-plot {style.text}"  # a page's own parts are not meant
    for group in root.iter(f"{{{SVG}}}g"):
        said = tips.get(group.get("id", ""))
        if said is not None:
            _say(group, said)
    _say(root, title)
    return element(root)


def drawable(text: str, limit: int = 90) -> str:
    """A name as a drawing can bear it: one line of characters that can be seen, not too long."""
    seen = "".join(letter if letter.isprintable() else " " for letter in text)
    return seen if len(seen) <= limit else f"{seen[: limit - 1]}…"


def _say(part: ElementTree.Element, text: str) -> None:
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = text
    part.insert(0, title)
