"""What modules and layers cost: the costs of the operators in them, added up."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

from llmsim_magic.analyses.cost.operator_costs import Cost, costs, intensity
from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.trace import Trace

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class CostSum:
    """Sums over operators; FLOPs and elementwise operations are None where none are known."""

    operators: int = 0
    flops: int | None = 0
    elementwise_ops: int | None = 0
    causal_skippable_flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_weights: int = 0
    bytes_activations: int = 0
    bytes_cache: int = 0

    @property
    def arithmetic_intensity(self) -> float | None:
        """FLOPs for each byte moved."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)

    @classmethod
    def of(cls, cost: Cost) -> "CostSum":
        return cls(1, *(getattr(cost, name) for name in _SUMMED[1:]))

    def add(self, other: "CostSum") -> None:
        for name in _SUMMED:
            mine, its = getattr(self, name), getattr(other, name)
            setattr(self, name, its if mine is None else mine if its is None else mine + its)


_SUMMED = tuple(field.name for field in fields(CostSum))


@memoize
def costs_by_module(trace: Trace) -> dict[str, CostSum]:
    """What the operators of each module that runs any spend, those of its children included."""
    own = _grouped(zip(trace.paths, costs(trace), strict=True))
    below: dict[str, CostSum] = {}
    for path, spent in own.items():
        above: str | None = path
        while above is not None:
            _add(below, above, spent)
            above = above.rpartition(".")[0] if above else None
    return below


@memoize
def costs_by_layer(trace: Trace) -> dict[Layer | None, CostSum]:
    """What each layer spends, in the order they run; None is all that lies outside of layers."""
    return _grouped(zip(layers(trace), costs(trace), strict=True))


def _grouped(each: Iterable[tuple[Key, Cost]]) -> dict[Key, CostSum]:
    found: dict[Key, CostSum] = {}
    of: dict[int, CostSum] = {}  # replayed layers share the costs of those recorded
    for key, cost in each:
        spent = of.get(id(cost))
        if spent is None:
            spent = of[id(cost)] = CostSum.of(cost)
        _add(found, key, spent)
    return found


def _add(found: dict[Key, CostSum], key: Key, spent: CostSum) -> None:
    known = found.get(key)
    if known is None:
        known = found[key] = CostSum(flops=None, elementwise_ops=None)
    known.add(spent)
