"""The charts of costs: what each type of operator, and each kind of layer, takes of a pass."""

from collections.abc import Mapping, Sequence

from llmsim_magic.analyses.cost.operator_costs import recorded_costs
from llmsim_magic.analyses.graph.layer_folding import identical_layers
from llmsim_magic.analyses.graph.layers import index_spans, layers
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views import units
from llmsim_magic.views.charts.chart import Bar, BarChart, Piece

_MOST_TYPES = 6  # of which each has a colour; the others are one
_OTHERS = "others"
Amounts = Sequence[float]  # of each operator of a pass


def cost_charts(trace: Trace, time: PassTime | None) -> tuple[BarChart, ...]:
    """What makes up FLOPs, bytes and time: a chart by type of operator, and one by layer.

    A training step has one by pass before them.

    Args:
        trace: the pass.
        time: its time on a device; None without one.
    """
    quantities = _quantities(trace, time)
    types = trace.expand_replays([operator.op for operator in trace.recorded.operators])
    parts = trace.expand_replays([operator.part for operator in trace.recorded.operators])
    by_pass = () if trace.training is None else (_chart("By pass", quantities, parts),)
    return (
        *by_pass,
        _chart("By type of operator", quantities, types),
        _chart("By layer", quantities, _layer_names(trace)),
    )


def _quantities(trace: Trace, time: PassTime | None) -> dict[str, tuple[Amounts, str]]:
    """FLOPs and bytes of the kernels that the times are of: an engine's are not the model's."""
    if time is None or time.execution.runtime == "transformers":
        costs = trace.expand_replays(list(recorded_costs(trace)))
        flops = [float(cost.flops or 0) for cost in costs]
        moved = [float(cost.bytes_read + cost.bytes_written) for cost in costs]
    else:
        flops = [operator.flops for operator in time.operators]
        moved = [float(operator.bytes) for operator in time.operators]
    found: dict[str, tuple[Amounts, str]] = {"FLOPs": (flops, "FLOPs"), "bytes moved": (moved, "B")}
    if time is not None:
        found["time"] = ([operator.seconds for operator in time.operators], "s")
    return found


def _chart(
    title: str, quantities: Mapping[str, tuple[Amounts, str]], groups: Sequence[str]
) -> BarChart:
    sums = {name: _sums(amounts, groups) for name, (amounts, _) in quantities.items()}
    largest = _largest_groups(sums)
    bars = tuple(_bar(name, sums[name], largest, unit) for name, (_, unit) in quantities.items())
    return BarChart(title, bars, has_own_scales=True)


def _sums(amounts: Amounts, groups: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for amount, group in zip(amounts, groups, strict=True):
        found[group] = found.get(group, 0.0) + amount
    return found


def _largest_groups(sums: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The groups with the largest share of any quantity, largest first."""
    shares: dict[str, float] = {}
    for of_group in sums.values():
        total = sum(of_group.values()) or 1.0
        for group, amount in of_group.items():
            shares[group] = max(shares.get(group, 0.0), amount / total)
    return sorted(shares, key=lambda group: -shares[group])[:_MOST_TYPES]


def _bar(name: str, sums: Mapping[str, float], largest: Sequence[str], unit: str) -> Bar:
    total = sum(sums.values())
    rest = total - sum(sums.get(group, 0.0) for group in largest)
    amounts = [(group, sums.get(group, 0.0)) for group in largest]
    if len(sums) > len(largest):
        amounts.append((_OTHERS, max(rest, 0.0)))
    pieces = tuple(
        Piece(group, amount, f"{_text(amount, unit)}, {units.share(amount / total)}")
        for group, amount in amounts
        if total
    )
    return Bar(name, pieces, _text(total, unit))


def _text(amount: float, unit: str) -> str:
    return units.seconds(amount) if unit == "s" else units.si(amount, unit)


def _layer_names(trace: Trace) -> list[str]:
    """`model.layers.0–27 ×28`, or `outside layers`, of each operator."""
    names: dict[tuple[str, int], str] = {}
    for group in identical_layers(trace):
        stack, number = group.first.stack, len(group.indices)
        spans = index_spans(group.indices).replace("-", "–")
        name = f"{stack}.{spans}" if stack else spans
        for index in group.indices:
            names[stack, index] = f"{name} ×{number}" if number > 1 else name
    return [
        "outside layers" if layer is None else names[layer.stack, layer.index]
        for layer in layers(trace)
    ]
