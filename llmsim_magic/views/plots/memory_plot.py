"""The memory of a training step over time, stacked by category, with its passes and its peak."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmsim_magic.analyses.allocations.memory_timeline import points
from llmsim_magic.analyses.allocations.step_allocations import Moment, step_allocations
from llmsim_magic.analyses.allocations.step_events import CATEGORIES, STAGE_OF
from llmsim_magic.analyses.allocations.step_memory import place
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.plots.plot import Plot, annotate_svg, display_name, render_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Those of the bars in `page.css`, `--c0` to `--c4`, so that a category has one colour on a page.
COLOURS = dict(
    zip(CATEGORIES, ("#2f6fb3", "#e08a1e", "#3d9b57", "#b5483f", "#8461b8"), strict=True)
)
_NAMES = {"optimizer": "states of the optimizer", "saved": "saved for backward"}
_TEXT_COLOUR, _LINE_COLOUR = "#222222", "#5f6368"
_HEADROOM = 1.22  # above the peak, for its label and the names of passes
_NARROW = 0.08  # of the width: a pass whose name begins before it


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineData:
    """What the figure shows: moments in order, the peak among them, and where it is."""

    title: str
    moments: tuple[Moment, ...]
    peak_text: str

    @property
    def peak(self) -> int:
        """The index of the moment of the most bytes."""
        return max(range(len(self.moments)), key=lambda at: self.moments[at].alive.total)


def memory_plot(trace: Trace) -> Plot:
    """Allocated bytes of a steady training step over its kernels, stacked by category.

    Short passes are drawn wider than the others, so that they can be seen.

    Args:
        trace: a training step.
    """
    data = timeline_data(trace)
    render = partial(_render, data)
    svg = annotate_svg(render("svg"), f"{data.title}. {data.peak_text}", {})
    return Plot(svg, data.title, render)


def timeline_data(trace: Trace) -> TimelineData:
    """The moments that are drawn, and what is said of the peak."""
    found = step_allocations(trace)
    peak = found.steady.peak
    title = f"Memory of a step of {display_name(trace.model.name, 60)}: {trace.workload}"
    return TimelineData(
        title=display_name(title),
        moments=points(found.moments),
        peak_text=display_name(f"{units.nbytes(peak.alive.total)} in {place(trace, peak)}", 60),
    )


def _render(data: TimelineData, fmt: str) -> bytes:
    return render_figure(partial(_figure, data), data.title, fmt)


def _figure(data: TimelineData) -> "Figure":
    """The figure on white; it uses neither pyplot nor the backend that the user selected."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.6, 4.4), facecolor="white")
    FigureCanvasAgg(fig)
    axes = fig.add_axes((0.085, 0.075, 0.895, 0.765))
    fig.text(0.085, 0.945, data.title, size=11, weight="bold", color=_TEXT_COLOUR, parse_math=False)
    _set_up_axes(axes, data)
    _draw_areas(axes, data.moments)
    _mark_passes(axes, data)
    _label_peak(axes, data)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
        ncols=len(CATEGORIES),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0.0,
        handlelength=1.2,
        columnspacing=1.2,
    )
    return fig


def _set_up_axes(axes: "Axes", data: TimelineData) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xlim(0, len(data.moments))
    axes.set_ylim(0, data.moments[data.peak].alive.total * _HEADROOM)
    axes.set_xlabel("kernels of the step, in order", color=_TEXT_COLOUR)
    axes.set_xticks([])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.nbytes(round(value))))
    axes.grid(True, axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_areas(axes: "Axes", moments: Sequence[Moment]) -> None:
    """Steps, since bytes change when a kernel allocates and stay until another one does."""
    places = range(len(moments) + 1)
    sizes = [
        [*(moment.alive[category] for moment in moments), moments[-1].left[category]]
        for category in range(len(CATEGORIES))
    ]
    axes.stackplot(
        places,
        sizes,
        labels=[_NAMES.get(name, name) for name in CATEGORIES],
        colors=list(COLOURS.values()),
        step="post",
        linewidth=0,
        alpha=0.85,
    )


def _mark_passes(axes: "Axes", data: TimelineData) -> None:
    """A line where each pass begins, and its name above."""
    starts: dict[str, int] = {}
    for at, moment in enumerate(data.moments):
        starts.setdefault(STAGE_OF[moment.part], at)
    ends = [*list(starts.values())[1:], len(data.moments)]
    top = axes.get_ylim()[1]
    for (name, start), end in zip(starts.items(), ends, strict=True):
        if start:
            axes.axvline(start, color=_LINE_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)))
        is_narrow = end - start < _NARROW * len(data.moments)
        axes.annotate(
            name,
            (start if is_narrow else (start + end) / 2, top),
            (-3 if is_narrow else 0, -4),
            textcoords="offset points",
            ha="right" if is_narrow else "center",
            va="top",
            size=9,
            color=_LINE_COLOUR,
        )


def _label_peak(axes: "Axes", data: TimelineData) -> None:
    at, total = data.peak + 0.5, data.moments[data.peak].alive.total
    is_right = at > len(data.moments) / 2
    axes.plot([at], [total], marker="o", markersize=4.5, color=_TEXT_COLOUR)
    axes.annotate(
        data.peak_text,
        (at, total),
        (-7 if is_right else 7, 4),
        textcoords="offset points",
        ha="right" if is_right else "left",
        size=9.5,
        weight="bold",
        color=_TEXT_COLOUR,
        parse_math=False,
    )
