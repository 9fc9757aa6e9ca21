"""A plot that displays itself in a notebook and saves itself as SVG or PNG."""

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
from llmsim_magic.views.safe_files import as_path, write_file
from llmsim_magic.views.section import Picture
from llmsim_magic.views.svg_markup import SVG, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
_RC_PARAMS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}


# In JupyterLab's dark theme: white becomes the theme's dark grey, and hues stay.
_DARK = (
    "<style>[data-jp-theme-light=false] img.llmsim-plot "
    "{filter:invert(.88) hue-rotate(180deg)}</style>"
)
# `matplotlib.rc_context` changes the whole process, so one thread at a time may draw.
_matplotlib_lock = ExclusiveLock("a plot is being drawn")


@dataclass(frozen=True)
class Plot(Picture):
    """A plot on a white background.

    A notebook displays it as an image, which needs no trust; on a dark one in a dark theme.

    Attributes:
        svg: the plot as SVG.
        title: its title, which is also its text for screen readers.
        render: draws it in another format of `FORMATS`.
    """

    svg: str
    title: str
    render: Callable[[str], bytes] = field(repr=False, compare=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the plot to a file.

        Args:
            path: a file that ends in `.svg` or `.png`.
            overwrite: also replace a file that this package did not write.

        Returns:
            The path of the file.

        Raises:
            InvalidValue: another ending, or a file that cannot be written.
            OverwriteRefused: the file exists and was not written by this package.
        """
        ending = as_path(path).suffix.removeprefix(".")
        if ending not in FORMATS:
            raise InvalidValue.must_be(
                "path", str(path), "a file ending in ." + ", .".join(FORMATS)
            )
        content = self.svg.encode() if ending == "svg" else self.render(ending)
        return write_file(path, content, overwrite=overwrite)

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        title = html.escape(self.title, quote=True)
        return (
            f'{_DARK}<img class="llmsim-plot" alt="{title}" '
            f'style="max-width:100%;background:white" src="data:image/svg+xml;base64,{data}"/>'
        )

    def __repr__(self) -> str:
        return f"Plot({self.title!r}: .svg, .save(path))"


def render_figure(make: "Callable[[], Figure]", salt: str, fmt: str) -> bytes:
    """Draw a figure reproducibly, with matplotlib's default style; the user's style is restored.

    Args:
        make: builds the figure.
        salt: seeds the ids in an SVG, so that equal figures give equal bytes.
        fmt: a format that matplotlib writes, such as `svg`.
    """
    import matplotlib

    data = io.BytesIO()
    with DeferredInterrupt(), _matplotlib_lock, matplotlib.rc_context(), warnings.catch_warnings():
        # The font may lack a character of a name; an SVG viewer then uses a font of its own.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        matplotlib.rcdefaults()
        parameters: Any = _RC_PARAMS | {"svg.hashsalt": salt}
        matplotlib.rcParams.update(parameters)
        options: dict[str, Any] = {"metadata": {"Date": None}} if fmt == "svg" else {}
        make().savefig(data, format=fmt, dpi=144, **options)
    return data.getvalue()


def annotate_svg(svg: bytes, title: str, tooltips: Mapping[str, str]) -> str:
    """The SVG with a title for screen readers, and with tooltips on the groups of given ids."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib's own output
    root.attrib |= {"role": "img", "aria-label": title, "class": "llmsim-plot"}
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for style in root.iter(f"{{{SVG}}}style"):
        style.text = f".llmsim-plot {style.text}"  # keeps the style off the rest of the page
    for group in root.iter(f"{{{SVG}}}g"):
        tooltip = tooltips.get(group.get("id", ""))
        if tooltip is not None:
            _add_title(group, tooltip)
    _add_title(root, title)
    return to_svg(root)


def display_name(text: str, limit: int = 90) -> str:
    """The text in one line of printable characters, truncated to `limit` characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return printable if len(printable) <= limit else f"{printable[: limit - 1]}…"


def _add_title(part: ElementTree.Element, text: str) -> None:
    """Add an SVG title: a browser shows it as a tooltip."""
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = text
    part.insert(0, title)
