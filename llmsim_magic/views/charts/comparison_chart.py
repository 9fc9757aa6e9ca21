"""The chart of two models: how many times the first one the second is, by quantity."""

from collections.abc import Mapping

from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Bar, BarChart, Piece


def comparison_chart(ratios: Mapping[str, float], names: tuple[str, str]) -> BarChart:
    """A bar for each quantity, as long as the second model over the first.

    Args:
        ratios: the second value over the first, by quantity.
        names: the names of the first and the second model.
    """
    bars = tuple(_bar(label, ratio) for label, ratio in ratios.items())
    return BarChart(f"{names[1]} ÷ {names[0]} (line: equal)", bars)


def _bar(label: str, ratio: float) -> Bar:
    text = f"×{units.three_digits(ratio)}"
    return Bar(
        label, (Piece("", ratio, text),), text, limit=1.0, limit_text="equal", must_not_exceed=False
    )
