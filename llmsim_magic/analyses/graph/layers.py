"""Which layer each operator belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from llmsim_magic.analyses.kernels.memoize import memoize, memoize_invariant
from llmsim_magic.records.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class Layer:
    """An element of a repeated `ModuleList`: `model.layers`, 3."""

    stack: str
    index: int

    @property
    def path(self) -> str:
        return f"{self.stack}.{self.index}" if self.stack else str(self.index)


@memoize_invariant
def layers(trace: Trace) -> tuple[Layer | None, ...]:
    """The outermost layer that contains each operator; None outside all layers."""
    stacks = list_paths(trace)
    recorded = [layer_of(operator.path, stacks) for operator in trace.recorded.operators]
    found: list[Layer | None] = []
    for operator, replay in trace.steps:
        layer = recorded[operator]
        if layer is not None and replay is not None:
            layer = layer_of(replay.map_path(layer.path), stacks)
        found.append(layer)
    return tuple(found)


def list_paths(trace: Trace) -> frozenset[str]:
    """The paths of the lists of modules, whose elements are layers."""
    return frozenset(module.path for module in trace.modules if module.is_list)


@memoize
def operators_by_layer(trace: Trace) -> dict[Layer, list[int]]:
    """The orders of the operators in each layer, ascending."""
    found: dict[Layer, list[int]] = {}
    for order, layer in enumerate(layers(trace)):
        if layer is not None:
            found.setdefault(layer, []).append(order)
    return found


@lru_cache(maxsize=4096)
def layer_of(path: str, stacks: frozenset[str]) -> Layer | None:
    """The outermost layer that contains a module or parameter; None outside all layers.

    Args:
        path: the path of the module or parameter.
        stacks: the paths of lists of modules.
    """
    parts = path.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdigit() and stack in stacks:
            return Layer(stack, int(part))
    return None


def index_spans(indices: Iterable[int]) -> str:
    """Indices as ascending ranges, such as `0-2, 5`; more than four ranges are abbreviated."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    formatted = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ", ".join(formatted if len(formatted) <= 4 else [*formatted[:2], "…", formatted[-1]])
