"""The figure of a roofline plot: roofs, dots with their bars, and names that keep apart."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim_magic.analyses.time.roofline_points import Point, Roof
from llmsim_magic.views.units import scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which those who see fewer colours can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKS = ("o", "s", "D", "^", "v", "P")
_INK, _FAINT = "#222222", "#9aa0a6"
_NAMED = 8  # dots that take most of the time have their names beside them
_LEAST = 0.01  # of the time
_LINE = 13.0  # points from one name to the next


@dataclass(frozen=True, slots=True)
class Dot:
    """Operators that do the same in as many layers as `count`, and their share of the time."""

    name: str
    kind: str
    count: int
    share: float
    point: Point

    @property
    def called(self) -> str:
        return f"{self.name} ×{self.count}" if self.count > 1 else self.name

    @property
    def told(self) -> str:
        """All that is known of it, in a line."""
        point = self.point
        return (
            f"{self.called}: {scaled(point.flops_per_s)}FLOP/s ({scaled(point.low)} to "
            f"{scaled(point.high)}) at {point.intensity:.3g} FLOPs per byte, "
            f"{100 * self.share:.1f} % of the time, {point.binds} binds"
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the figure shows; `own` is the dtype whose roof is bold."""

    title: str
    note: str
    own: str
    dots: tuple[Dot, ...]
    roofs: tuple[Roof, ...]


def figure(scene: Scene) -> "Figure":
    """The scene on white, without pyplot and outside of any backend that is in use."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(9.6, 6.0), facecolor="white")
    FigureCanvasAgg(sheet)
    axes = sheet.add_axes((0.1, 0.145, 0.87, 0.765))
    _frame(axes, scene)
    sheet.text(0.1, 0.945, scene.title, size=12, weight="bold", color=_INK, parse_math=False)
    sheet.text(0.1, 0.025, scene.note, size=8.5, color="#555555", parse_math=False)
    for roof in scene.roofs:
        _roof(axes, roof, is_own=roof.dtype == scene.own)
    _roof_names(axes, scene)
    _bandwidth_name(axes, _own(scene))
    styles = _styles(scene.dots)
    for place, dot in enumerate(scene.dots):
        _dot(axes, dot, styles[dot.kind], f"dot{place}")
    named = [dot for dot in scene.dots[:_NAMED] if dot.share >= _LEAST]
    _names(axes, named, min([_own(scene).peak_flops, axes.get_ylim()[1]]))
    _legend(axes, styles)
    return sheet


def _own(scene: Scene) -> Roof:
    """The roof of the dtype of the trace; the highest where the device lacks it."""
    return max(scene.roofs, key=lambda roof: (roof.dtype == scene.own, roof.peak_flops))


def _frame(axes: "Axes", scene: Scene) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    own = _own(scene)
    across = [dot.point.intensity for dot in scene.dots] or [own.ridge]
    lows = [dot.point.low for dot in scene.dots] or [own.peak_flops]
    left = min(*across, own.ridge) / 6
    axes.set_xlim(left, max(own.ridge * 8, max(across) ** 2 / left))  # half is left for names
    axes.set_ylim(
        min(min(lows) / 3, own.peak_flops / 100),
        2.5 * max(roof.peak_flops for roof in scene.roofs),
    )
    axes.set_xlabel("arithmetic intensity (FLOPs per byte moved)", color=_INK)
    axes.set_ylabel("predicted performance (FLOP/s)", color=_INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _roof(axes: "Axes", roof: Roof, *, is_own: bool) -> None:
    left, right = axes.get_xlim()
    corners = [left, roof.ridge, right]
    heights = [left * roof.bandwidth_bytes_per_s, roof.peak_flops, roof.peak_flops]
    look = (_INK, 2.2, 3) if is_own else (_FAINT, 0.9, 2)
    axes.plot(corners, heights, color=look[0], linewidth=look[1], zorder=look[2])


def _roof_names(axes: "Axes", scene: Scene) -> None:
    """Each peak at its right end, arithmetics of one peak together."""
    _, right = axes.get_xlim()
    alike: dict[float, list[str]] = {}
    for roof in scene.roofs:
        alike.setdefault(roof.peak_flops, []).append(roof.dtype)
    for peak, dtypes in alike.items():
        is_own = scene.own in dtypes
        axes.annotate(
            f"{', '.join(dtypes)}: {scaled(peak)}FLOP/s",
            (right, peak),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            size=8.5,
            weight="bold" if is_own else "normal",
            color=_INK if is_own else "#5f6368",
        )


def _bandwidth_name(axes: "Axes", own: Roof) -> None:
    """Along the slope, up to the ridge."""
    end = own.ridge / 1.15
    bandwidth = own.bandwidth_bytes_per_s
    (x0, y0), (x1, y1) = axes.transData.transform(
        [(end / 2, end / 2 * bandwidth), (end, end * bandwidth)]
    )
    axes.annotate(
        f"memory: {scaled(bandwidth)}B/s",
        (end, end * bandwidth),
        (-3, 5),
        textcoords="offset points",
        rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
        rotation_mode="anchor",
        ha="right",
        size=8.5,
        color=_INK,
    )


Style = tuple[str, str]


def _styles(dots: Iterable[Dot]) -> dict[str, Style]:
    """A colour and a mark for each class of kernels."""
    kinds = sorted({dot.kind for dot in dots})
    return {
        kind: (_COLOURS[n % len(_COLOURS)], _MARKS[n % len(_MARKS)]) for n, kind in enumerate(kinds)
    }


def _dot(axes: "Axes", dot: Dot, style: Style, gid: str) -> None:
    colour, mark = style
    point = dot.point
    axes.vlines(point.intensity, point.low, point.high, color=_INK, linewidth=1.0, zorder=6)
    drawn = axes.scatter(
        [point.intensity],
        [point.flops_per_s],
        s=22 + 700 * dot.share,
        color=colour,
        marker=mark,
        alpha=0.75,
        edgecolors="white",
        linewidths=0.8,
        zorder=5,
    )
    drawn.set_gid(gid)


def _names(axes: "Axes", dots: Sequence[Dot], ceiling: float) -> None:
    """Names at the right of all dots, below the height `ceiling` and moved apart."""
    if not dots:
        return
    per_point = axes.figure.dpi / 72
    places = [(dot.point.intensity, dot.point.flops_per_s) for dot in dots]
    spots = [tuple(map(float, axes.transData.transform(place))) for place in places]
    bottom, top = (
        float(axes.transData.transform((1.0, y))[1]) for y in (axes.get_ylim()[0], ceiling)
    )
    gap = _LINE * per_point
    heights = apart([y for _, y in spots], gap, bottom + gap, top - gap)
    edge = max(x for x, _ in spots) + 26 * per_point
    for dot, place, (x, y), height in zip(dots, places, spots, heights, strict=True):
        axes.annotate(
            f"{dot.called}, {100 * dot.share:.0f} %",
            place,
            ((edge - x) / per_point, (height - y) / per_point),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=_INK,
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            arrowprops={
                "arrowstyle": "-",
                "color": _FAINT,
                "linewidth": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=7,
        )


def apart(heights: Sequence[float], gap: float, floor: float, ceiling: float) -> list[float]:
    """The same heights in the same order, moved so that none is nearer to another than `gap`."""
    placed = list(heights)
    falling = sorted(range(len(placed)), key=lambda place: -placed[place])
    limit = ceiling
    for place in falling:
        placed[place] = min(placed[place], limit)
        limit = placed[place] - gap
    limit = floor
    for place in reversed(falling):
        placed[place] = max(placed[place], limit)
        limit = placed[place] + gap
    return placed


def _legend(axes: "Axes", styles: dict[str, Style]) -> None:
    if not styles:
        axes.text(0.5, 0.5, "no operator multiplies", transform=axes.transAxes, ha="center")
        return
    for kind, (colour, mark) in styles.items():
        axes.scatter([], [], s=40, color=colour, marker=mark, label=kind)
    axes.legend(
        loc="upper left",
        title="class of kernel (area: share of the time)",
        title_fontsize=8.5,
        fontsize=8.5,
        alignment="left",
        frameon=False,
    )
