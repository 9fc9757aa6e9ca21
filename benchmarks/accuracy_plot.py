"""Draws predicted against measured seconds of whole passes, a panel for each runtime and launch.

    python -m benchmarks.accuracy_plot --points FILE --out docs/images/accuracy.svg

FILE is what `benchmarks.accuracy --points` wrote.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = {
    "transformers, eager": ("transformers_eager_prefill", "transformers_eager_decode"),
    "transformers, CUDA graph": ("transformers_graph_prefill", "transformers_graph_decode"),
    "vLLM and other engines": ("prefill_step", "decode_step"),
}
COLORS = {"prefill": "#1f6f8b", "decode": "#c8553d"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
Points = list[tuple[str, float, float, float, float]]  # phase, measured, predicted, low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with asked.points.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with mpl.rc_context(STYLE | {"svg.hashsalt": "llmsim_magic"}):
        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        for axes, (title, classes) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
            draw(axes, title, points(rows, classes))
        figure.savefig(asked.out, metadata={"Date": None})


def points(rows: Sequence[dict[str, str]], classes: Sequence[str]) -> Points:
    """The passes of some classes."""
    names = ("measured", "predicted", "low", "high")
    found: Points = []
    for row in rows:
        if row["scored"] in classes:
            phase = "decode" if "decode" in row["scored"] else "prefill"
            measured, predicted, low, high = (float(row[name]) for name in names)
            found.append((phase, measured, predicted, low, high))
    return found


def draw(axes: Axes, title: str, found: Points) -> None:
    """Milliseconds on both axes, the band as a bar, and a line where both are equal."""
    for phase, color in COLORS.items():
        some = [point for point in found if point[0] == phase]
        if not some:
            continue
        _, measured, predicted, low, high = zip(*some, strict=True)
        axes.errorbar(
            [1e3 * each for each in measured],
            [1e3 * each for each in predicted],
            yerr=[
                [1e3 * (p - each) for p, each in zip(predicted, low, strict=True)],
                [1e3 * (each - p) for p, each in zip(predicted, high, strict=True)],
            ],
            fmt="o",
            markersize=3.5,
            linewidth=0.8,
            color=color,
            label=f"{phase}, {len(some)} passes",
        )
    ends = [1e3 * value for _, measured, _, low, high in found for value in (measured, low, high)]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#888888", linewidth=0.8)
        axes.legend(loc="upper left", frameon=False)
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted with its band, ms")


if __name__ == "__main__":
    main()
