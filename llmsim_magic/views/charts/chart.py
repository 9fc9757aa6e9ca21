"""Charts and cards as records. A page draws them in the colours of its theme."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar: its name, its size, and the size as text."""

    name: str
    size: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: what the bar is of.
        pieces: the parts that add up to the bar.
        text: its length in people's units.
        band: both ends of the 90 % interval, in the unit of the pieces.
        limit: where its row has a mark.
        limit_text: the limit in people's units.
        must_not_exceed: whether a bar beyond the limit is a fault, and its mark red.
        is_hypothetical: whether the bar is of something that cannot run, and is drawn grey.
    """

    label: str
    pieces: tuple[Piece, ...]
    text: str
    band: tuple[float, float] | None = None
    limit: float | None = None
    limit_text: str = ""
    must_not_exceed: bool = True
    is_hypothetical: bool = False

    @property
    def size(self) -> float:
        """The length of the bar."""
        return sum(piece.size for piece in self.pieces)

    @property
    def reach(self) -> float:
        """The largest value that the bar, its band or its limit has."""
        return max(self.size, self.band[1] if self.band else 0.0, self.limit or 0.0)


@dataclass(frozen=True, slots=True)
class BarChart:
    """Horizontal bars that share an axis.

    Attributes:
        title: what the lengths are.
        bars: the bars, from top to bottom.
        has_own_scales: whether each bar fills its row, because only its parts are compared.
    """

    title: str
    bars: tuple[Bar, ...]
    has_own_scales: bool = False


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of a heat map: its value, which gives its shade, and its text; None is empty."""

    value: float | None
    text: str
    exact: str = ""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values over two axes, shaded by the logarithm of the value.

    Attributes:
        title: what the values are.
        row_name: the name of the vertical axis.
        rows: its labels.
        column_name: the name of the horizontal axis.
        columns: its labels.
        cells: a row of cells for each label of `rows`.
    """

    title: str
    row_name: str
    rows: tuple[str, ...]
    column_name: str
    columns: tuple[str, ...]
    cells: tuple[tuple[HeatCell, ...], ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """One dot of a scatter chart; one with a `label` is named beside the dot."""

    x: float
    y: float
    tooltip: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Scatter:
    """Dots over two logarithmic axes, in the units that `x_unit` and `y_unit` name.

    Attributes:
        title: what the dots are.
        x_title: the name of the horizontal axis.
        y_title: the name of the vertical axis.
        x_unit: the unit of `x`: `B` or `s`.
        y_unit: the unit of `y`.
        dots: the dots.
    """

    title: str
    x_title: str
    y_title: str
    x_unit: str
    y_unit: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a card: a label, a value in people's units, and what it means."""

    label: str
    value: str
    exact: str = ""
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """Facts in titled groups, side by side where there is room."""

    groups: tuple[tuple[str, tuple[Fact, ...]], ...]
