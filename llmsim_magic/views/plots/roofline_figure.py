"""Draws a roofline plot with matplotlib: roofs, operators with their bands, and labels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim_magic.analyses.time.roofline_points import Point, Roof
from llmsim_magic.views import units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind people can distinguish.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_TEXT_COLOUR, _LINE_COLOUR = "#222222", "#9aa0a6"
_TITLE_SIZE, _SMALL_TITLE_SIZE, _SHORT_TITLE = 12, 9, 60  # points, points, characters
_MAX_LABELS = 8  # dots with the largest shares of the time are labelled
_MIN_LABELLED_SHARE = 0.01
_LABEL_SPACING = 13.0  # points


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """An operator that is the same in `count` layers, and the share of the time they all take."""

    name: str
    kind: str
    count: int
    share: float
    point: Point

    @property
    def label(self) -> str:
        return f"{self.name} ×{self.count}" if self.count > 1 else self.name

    @property
    def tooltip(self) -> str:
        """Performance, intensity, share and bottleneck in one line."""
        point = self.point
        return (
            f"{self.label}: {units.si(point.flops_per_s, 'FLOP/s')} ({units.si(point.low)} to "
            f"{units.si(point.high)}) at {point.intensity:.3g} FLOPs per byte, "
            f"{100 * self.share:.1f} % of the time, {point.binds} binds"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineData:
    """What the figure shows; `dtype` is the one whose roof is bold."""

    title: str
    caption: str
    dtype: str
    dots: tuple[Dot, ...]
    roofs: tuple[Roof, ...]


def roofline_figure(data: RooflineData) -> "Figure":
    """The figure on white; it uses neither pyplot nor the backend that the user selected."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.6, 6.0), facecolor="white")
    FigureCanvasAgg(fig)
    axes = fig.add_axes((0.1, 0.145, 0.87, 0.765))
    _set_up_axes(axes, data)
    size = _TITLE_SIZE if len(data.title) <= _SHORT_TITLE else _SMALL_TITLE_SIZE
    fig.text(0.1, 0.945, data.title, size=size, weight="bold", color=_TEXT_COLOUR, parse_math=False)
    fig.text(0.1, 0.025, data.caption, size=8.5, color="#555555", parse_math=False)
    for roof in data.roofs:
        _draw_roof(axes, roof, is_bold=roof.dtype == data.dtype)
    _label_roofs(axes, data)
    _label_bandwidth(axes, _model_roof(data))
    styles = _styles(data.dots)
    for place, dot in enumerate(data.dots):
        _draw_dot(axes, dot, styles[dot.kind], f"dot{place}")
    labelled = [dot for dot in data.dots[:_MAX_LABELS] if dot.share >= _MIN_LABELLED_SHARE]
    _label_dots(axes, labelled, min([_model_roof(data).peak_flops, axes.get_ylim()[1]]))
    _add_legend(axes, styles)
    return fig


def _model_roof(data: RooflineData) -> Roof:
    """The roof of the model's dtype; the highest roof if the device has none for it."""
    return max(data.roofs, key=lambda roof: (roof.dtype == data.dtype, roof.peak_flops))


def _set_up_axes(axes: "Axes", data: RooflineData) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    roof = _model_roof(data)
    intensities = [dot.point.intensity for dot in data.dots] or [roof.ridge]
    lows = [dot.point.low for dot in data.dots] or [roof.peak_flops]
    left = min(*intensities, roof.ridge) / 6
    # The right half is for labels.
    axes.set_xlim(left, max(roof.ridge * 8, max(intensities) ** 2 / left))
    axes.set_ylim(
        min(min(lows) / 3, roof.peak_flops / 100),
        2.5 * max(each.peak_flops for each in data.roofs),
    )
    axes.set_xlabel("arithmetic intensity (FLOPs per byte moved)", color=_TEXT_COLOUR)
    axes.set_ylabel("predicted performance (FLOP/s)", color=_TEXT_COLOUR)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_roof(axes: "Axes", roof: Roof, *, is_bold: bool) -> None:
    left, right = axes.get_xlim()
    corners = [left, roof.ridge, right]
    heights = [left * roof.bandwidth_bytes_per_s, roof.peak_flops, roof.peak_flops]
    colour, width, zorder = (_TEXT_COLOUR, 2.2, 3) if is_bold else (_LINE_COLOUR, 0.9, 2)
    axes.plot(corners, heights, color=colour, linewidth=width, zorder=zorder)


def _label_roofs(axes: "Axes", data: RooflineData) -> None:
    """Label each peak at its right end; dtypes of equal peak share a label."""
    _, right = axes.get_xlim()
    dtypes_by_peak: dict[float, list[str]] = {}
    for roof in data.roofs:
        dtypes_by_peak.setdefault(roof.peak_flops, []).append(roof.dtype)
    for peak, dtypes in dtypes_by_peak.items():
        is_bold = data.dtype in dtypes
        axes.annotate(
            f"{', '.join(dtypes)}: {units.si(peak, 'FLOP/s')}",
            (right, peak),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            size=8.5,
            weight="bold" if is_bold else "normal",
            color=_TEXT_COLOUR if is_bold else "#5f6368",
        )


def _label_bandwidth(axes: "Axes", roof: Roof) -> None:
    """Label the slope, up to the ridge."""
    end = roof.ridge / 1.15
    bandwidth = roof.bandwidth_bytes_per_s
    (x0, y0), (x1, y1) = axes.transData.transform(
        [(end / 2, end / 2 * bandwidth), (end, end * bandwidth)]
    )
    axes.annotate(
        f"memory: {units.si(bandwidth, 'B/s')}",
        (end, end * bandwidth),
        (-3, 5),
        textcoords="offset points",
        rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
        rotation_mode="anchor",
        ha="right",
        size=8.5,
        color=_TEXT_COLOUR,
    )


Style = tuple[str, str]


def _styles(dots: Iterable[Dot]) -> dict[str, Style]:
    """A colour and a marker for each kernel class."""
    kinds = sorted({dot.kind for dot in dots})
    styles = list(zip(_COLOURS, _MARKERS, strict=True))
    return {kind: styles[n % len(styles)] for n, kind in enumerate(kinds)}


def _draw_dot(axes: "Axes", dot: Dot, style: Style, gid: str) -> None:
    colour, marker = style
    point = dot.point
    axes.vlines(point.intensity, point.low, point.high, color=_TEXT_COLOUR, linewidth=1.0, zorder=6)
    drawn = axes.scatter(
        [point.intensity],
        [point.flops_per_s],
        s=22 + 700 * dot.share,
        color=colour,
        marker=marker,
        alpha=0.75,
        edgecolors="white",
        linewidths=0.8,
        zorder=5,
    )
    drawn.set_gid(gid)


def _label_dots(axes: "Axes", dots: Sequence[Dot], ceiling: float) -> None:
    """Label dots to the right of all of them, without overlap and below `ceiling`, in FLOP/s."""
    if not dots:
        return
    points_to_pixels = axes.figure.dpi / 72
    places = [(dot.point.intensity, dot.point.flops_per_s) for dot in dots]
    spots = [tuple(map(float, axes.transData.transform(place))) for place in places]
    bottom, top = (
        float(axes.transData.transform((1.0, y))[1]) for y in (axes.get_ylim()[0], ceiling)
    )
    gap = _LABEL_SPACING * points_to_pixels
    heights = spread_labels([y for _, y in spots], gap, bottom + gap, top - gap)
    edge = max(x for x, _ in spots) + 26 * points_to_pixels
    for dot, place, (x, y), height in zip(dots, places, spots, heights, strict=True):
        axes.annotate(
            f"{dot.label}, {100 * dot.share:.0f} %",
            place,
            ((edge - x) / points_to_pixels, (height - y) / points_to_pixels),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=_TEXT_COLOUR,
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            arrowprops={
                "arrowstyle": "-",
                "color": _LINE_COLOUR,
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=7,
        )


def spread_labels(
    heights: Sequence[float], gap: float, floor: float, ceiling: float
) -> list[float]:
    """The heights in their order, moved until all are at least `gap` from each other."""
    placed = list(heights)
    top_down = sorted(range(len(placed)), key=lambda place: -placed[place])
    limit = ceiling
    for place in top_down:
        placed[place] = min(placed[place], limit)
        limit = placed[place] - gap
    limit = floor
    for place in reversed(top_down):
        placed[place] = max(placed[place], limit)
        limit = placed[place] + gap
    return placed


def _add_legend(axes: "Axes", styles: dict[str, Style]) -> None:
    if not styles:
        axes.text(0.5, 0.5, "no operator has FLOPs", transform=axes.transAxes, ha="center")
        return
    for kind, (colour, marker) in styles.items():
        axes.scatter([], [], s=40, color=colour, marker=marker, label=kind)
    axes.legend(
        loc="upper left",
        title="kernel class (area: share of the time)",
        title_fontsize=8.5,
        fontsize=8.5,
        alignment="left",
        frameon=False,
    )
