"""The memory of a training step over time: what grows in which pass and layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from llmsim_magic.analyses.allocations.step_allocations import Alive, Moment, step_allocations
from llmsim_magic.analyses.allocations.step_events import STAGE_OF, Stage
from llmsim_magic.analyses.allocations.tensor_lifetimes import operator_name
from llmsim_magic.analyses.graph.layers import Layer, index_spans, layers
from llmsim_magic.records.trace.trace import Trace

_MOST_POINTS = 240
_FEW = 12  # points of a short pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive operators of one pass: those of the layers of a stack, or one outside them.

    Attributes:
        stage: The pass; backward includes the forward that it runs again.
        path: The layers, such as `model.layers.0-27`, or the operator.
        layers: How many layers there are; 0 outside layers.
        before: Bytes of each category before it.
        peak: Those while most is allocated.
        after: Those after it.
    """

    stage: Stage
    path: str
    layers: int
    before: Alive
    peak: Alive
    after: Alive


def spans(trace: Trace) -> tuple[Span, ...]:
    """A steady training step as spans, in order."""
    found: list[Span] = []
    layer_of = layers(trace)
    moments = step_allocations(trace).moments
    operators = _operators(moments)

    def key(place: int) -> tuple[Stage, str, bool]:
        moment = moments[place]
        stage = STAGE_OF[moment.part]
        if stage == "optimizer":
            return stage, "", False
        operator = operators[place]
        if operator is None:
            return stage, stage, False
        layer = layer_of[operator]
        if layer is None:
            return stage, operator_name(trace.unrolled, operator), False
        return stage, layer.stack, True

    before = moments[0].alive if moments else Alive(0, 0, 0, 0, 0)
    for (stage, path, is_stack), group in groupby(range(len(moments)), key):
        places = list(group)
        of_span = [moments[place] for place in places]
        inside = {
            layer
            for operator in (operators[place] for place in places)
            if is_stack and operator is not None
            for layer in [layer_of[operator]]
            if layer is not None
        }
        found.append(
            Span(
                stage=stage,
                path=_name(path, inside),
                layers=len(inside),
                before=before,
                peak=max(of_span, key=lambda moment: moment.alive.total).alive,
                after=of_span[-1].left,
            )
        )
        before = of_span[-1].left
    return tuple(found)


def _operators(moments: Sequence[Moment]) -> list[int | None]:
    """The operator of each moment; of a kernel outside operators, such as a view, the one before.

    Where none of its pass is before it, the next one.
    """
    found = [moment.operator for moment in moments]
    stages = [STAGE_OF[moment.part] for moment in moments]
    for order in (range(1, len(found)), range(len(found) - 2, -1, -1)):
        for place in order:
            beside = place - order.step
            if found[place] is None and stages[place] == stages[beside]:
                found[place] = found[beside]
    return found


def _name(path: str, inside: set[Layer]) -> str:
    if not inside:
        return path
    indices = index_spans(sorted(layer.index for layer in inside))
    return f"{path}.{indices}" if path else indices


def points(moments: Sequence[Moment], most: int = _MOST_POINTS) -> tuple[Moment, ...]:
    """About so many moments for a plot, in order: of each stretch that of the most bytes.

    The peak of the step is one of them. Stretches are of equally many moments within a pass; a pass
    of few moments keeps them.
    """
    found: list[Moment] = []
    for _, group in groupby(moments, lambda moment: STAGE_OF[moment.part]):
        of_stage = list(group)
        share = round(most * len(of_stage) / len(moments))
        width = -(-len(of_stage) // max(share, min(len(of_stage), _FEW)))
        found += [
            max(of_stage[first : first + width], key=lambda moment: moment.alive.total)
            for first in range(0, len(of_stage), width)
        ]
    return tuple(found)
