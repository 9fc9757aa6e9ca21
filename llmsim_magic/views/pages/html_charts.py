"""Charts and cards as HTML, in the colours of the page's theme."""

import html
import math
from collections.abc import Iterable, Sequence

from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import (
    Bar,
    BarChart,
    Card,
    Dot,
    Fact,
    HeatCell,
    HeatMap,
    Piece,
    Scatter,
)

_COLORS = 8  # of the style sheet, `--c0` to `--c7`
_WIDTH, _HEIGHT = 760, 300  # of a scatter chart, in its own units
_LEFT, _BOTTOM, _TOP, _RIGHT = 76, 40, 10, 130
_LEAST_SHADE, _MOST_SHADE = 6, 58  # per cent of the colour of a heat map


def chart_html(chart: BarChart | HeatMap | Scatter | Card) -> str:
    """A chart or card as HTML."""
    if isinstance(chart, BarChart):
        return _bar_chart(chart)
    if isinstance(chart, HeatMap):
        return _heat_map(chart)
    return _scatter(chart) if isinstance(chart, Scatter) else _card(chart)


def _bar_chart(chart: BarChart) -> str:
    names = list(dict.fromkeys(piece.name for bar in chart.bars for piece in bar.pieces))
    colors = {name: place % _COLORS for place, name in enumerate(names)}
    reach = max((bar.reach for bar in chart.bars), default=0.0)
    rows = "".join(
        _bar(bar, bar.reach if chart.has_own_scales else reach, colors) for bar in chart.bars
    )
    legend = _legend(colors) if len(names) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(chart.title)}</figcaption>'
        f'{legend}<div class="bars">{rows}</div></figure>'
    )


def _bar(bar: Bar, reach: float, colors: dict[str, int]) -> str:
    pieces = "".join(_piece(piece, reach, colors[piece.name]) for piece in bar.pieces)
    marks = ""
    if bar.band is not None:
        low, high = (_percent(end, reach) for end in bar.band)
        marks += f'<b class="band" style="left:{low:.2f}%;width:{max(high - low, 0):.2f}%"></b>'
    if bar.limit is not None:
        is_over = bar.must_not_exceed and bar.size > bar.limit
        kind = "limit over" if is_over else "limit"
        marks += (
            f'<b class="{kind}" style="left:{_percent(bar.limit, reach):.2f}%" '
            f'title="{html.escape(bar.limit_text, quote=True)}"></b>'
        )
    parts = ", ".join(f"{piece.name} {piece.text}" for piece in bar.pieces if piece.name)
    spoken = html.escape(f"{bar.label}: {bar.text}" + (f" ({parts})" if parts else ""), quote=True)
    kind = "bar hypothetical" if bar.is_hypothetical else "bar"
    return (
        f'<div class="{kind}" role="img" aria-label="{spoken}">'
        f'<span class="label" title="{html.escape(bar.label, quote=True)}">'
        f'{html.escape(bar.label)}</span><span class="track">{pieces}{marks}</span>'
        f'<span class="text">{html.escape(bar.text)}</span></div>'
    )


def _piece(piece: Piece, reach: float, color: int) -> str:
    tooltip = html.escape(f"{piece.name} {piece.text}".strip(), quote=True)
    return (
        f'<i style="width:{_percent(piece.size, reach):.2f}%;background:var(--c{color})" '
        f'title="{tooltip}"></i>'
    )


def _percent(size: float, reach: float) -> float:
    return 100 * size / reach if reach > 0 else 0.0


def _legend(colors: dict[str, int]) -> str:
    entries = "".join(
        f'<span><i style="background:var(--c{color})"></i>{html.escape(name)}</span>'
        for name, color in colors.items()
    )
    return f'<div class="legend">{entries}</div>'


def _heat_map(chart: HeatMap) -> str:
    values = [cell.value for row in chart.cells for cell in row if cell.value]
    low, high = (math.log(min(values)), math.log(max(values))) if values else (0.0, 0.0)
    heads = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in chart.columns)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>'
        f"{''.join(_heat_cell(cell, low, high) for cell in row)}</tr>"
        for label, row in zip(chart.rows, chart.cells, strict=True)
    )
    corner = html.escape(f"{chart.row_name} \\ {chart.column_name}")
    return (
        f'<figure class="chart heat"><figcaption>{html.escape(chart.title)}</figcaption>'
        f'<table><thead><tr><th scope="col" class="dim">{corner}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></figure>"
    )


def _heat_cell(cell: HeatCell, low: float, high: float) -> str:
    if not cell.value:
        return f"<td>{html.escape(cell.text)}</td>"
    place = (math.log(cell.value) - low) / (high - low) if high > low else 0.5
    shade = _LEAST_SHADE + place * (_MOST_SHADE - _LEAST_SHADE)
    return (
        f'<td style="--shade:{shade:.0f}%" title="{html.escape(cell.exact, quote=True)}">'
        f"{html.escape(cell.text)}</td>"
    )


def _card(card: Card) -> str:
    groups = "".join(
        f"<section><h5>{html.escape(title)}</h5><dl>{''.join(map(_fact, facts))}</dl></section>"
        for title, facts in card.groups
        if facts
    )
    return f'<div class="card">{groups}</div>'


def _fact(fact: Fact) -> str:
    title = f' title="{html.escape(fact.exact, quote=True)}"' if fact.exact else ""
    meaning = f' <span class="dim">{html.escape(fact.meaning)}</span>' if fact.meaning else ""
    return (
        f"<div><dt>{html.escape(fact.label)}</dt>"
        f"<dd{title}><b>{html.escape(fact.value)}</b>{meaning}</dd></div>"
    )


def _scatter(chart: Scatter) -> str:
    """Dots on two logarithmic axes, as SVG."""
    if not chart.dots:
        return ""
    xs, ys = ([getattr(dot, axis) for dot in chart.dots] for axis in ("x", "y"))
    (x_low, x_high), (y_low, y_high) = _decades(xs), _decades(ys)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(value: float) -> float:
        return _LEFT + (math.log10(value) - x_low) / (x_high - x_low) * (right - _LEFT)

    def up(value: float) -> float:
        return bottom - (math.log10(value) - y_low) / (y_high - y_low) * (bottom - _TOP)

    marks = [
        *(
            f'<path class="grid" d="M{across(at):.1f} {_TOP}V{bottom}"/>'
            f'<text x="{across(at):.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{_axis_text(at, chart.x_unit)}</text>"
            for at in _ticks(x_low, x_high)
        ),
        *(
            f'<path class="grid" d="M{_LEFT} {up(at):.1f}H{right}"/>'
            f'<text x="{_LEFT - 6}" y="{up(at) + 4:.1f}" text-anchor="end">'
            f"{_axis_text(at, chart.y_unit)}</text>"
            for at in _ticks(y_low, y_high)
        ),
        *(_dot(dot, across(dot.x), up(dot.y)) for dot in chart.dots),
        *_labels((dot.label, across(dot.x), up(dot.y)) for dot in chart.dots if dot.label),
    ]
    title = html.escape(chart.title, quote=True)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">{"".join(marks)}'
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(chart.x_title)}</text>"
        f'<text x="12" y="{(_TOP + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + bottom) / 2})">{html.escape(chart.y_title)}</text>'
        "</svg></figure>"
    )


def _dot(dot: Dot, x: float, y: float) -> str:
    kind = ' class="named"' if dot.label else ""
    return (
        f'<circle{kind} cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
        f"<title>{html.escape(dot.tooltip)}</title></circle>"
    )


def _labels(named: Iterable[tuple[str, float, float]]) -> list[str]:
    """Names to the right of their dots, moved up where they would cover one below."""
    found, taken = list[str](), list[tuple[float, float]]()
    for label, x, own in sorted(named, key=lambda each: -each[2]):
        y = own
        while any(abs(other[1] - y) < 12 and abs(other[0] - x) < 90 for other in taken):
            y -= 12
        taken.append((x, y))
        place = f'x="{x + 8:.1f}" y="{y + 4:.1f}"'
        if y != own:
            found.append(f'<path class="leader" d="M{x:.1f} {own:.1f}L{x + 6:.1f} {y:.1f}"/>')
        found.append(f'<text class="name" {place}>{html.escape(label)}</text>')
    return found


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis that holds the values, as powers of ten."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max((high - low) * 0.06, 0.05)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two powers; fewer over many decades."""
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    found = [
        step * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
    ]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _axis_text(value: float, unit: str) -> str:
    return units.seconds(value) if unit == "s" else units.si(value, unit)
