"""Costs of modules and layers: the sums over their operators."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

from llmsim_magic.analyses.cost.operator_costs import Cost, costs, intensity
from llmsim_magic.analyses.graph.layers import Layer, layers
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.trace import Trace

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True, kw_only=True)
class CostSum:
    """Sums over operators; FLOPs and elementwise operations are None if no operator's are known."""

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
        """FLOPs per byte read or written."""
        return intensity(self.flops, self.bytes_read + self.bytes_written)

    @classmethod
    def of(cls, cost: Cost) -> "CostSum":
        """The sum over a single operator."""
        return cls(operators=1, **{name: getattr(cost, name) for name in _SUMMED_FIELDS[1:]})

    def add(self, other: "CostSum") -> None:
        for name in _SUMMED_FIELDS:
            a, b = getattr(self, name), getattr(other, name)
            setattr(self, name, b if a is None else a if b is None else a + b)


_SUMMED_FIELDS = tuple(field.name for field in fields(CostSum))


@memoize
def costs_by_module(trace: Trace) -> dict[str, CostSum]:
    """The cost of each module that runs operators, including its children, by path."""
    own = _sum_by_key(zip(trace.paths, costs(trace), strict=True))
    found: dict[str, CostSum] = {}
    for path, cost_sum in own.items():
        ancestor: str | None = path
        while ancestor is not None:
            _add(found, ancestor, cost_sum)
            ancestor = ancestor.rpartition(".")[0] if ancestor else None
    return found


@memoize
def costs_by_layer(trace: Trace) -> dict[Layer | None, CostSum]:
    """The cost of each layer in execution order; the key None holds operators outside layers."""
    return _sum_by_key(zip(layers(trace), costs(trace), strict=True))


def _sum_by_key(costs_by_key: Iterable[tuple[Key, Cost]]) -> dict[Key, CostSum]:
    found: dict[Key, CostSum] = {}
    sums: dict[int, CostSum] = {}  # replayed layers share the recorded layer's costs
    for key, cost in costs_by_key:
        cost_sum = sums.get(id(cost))
        if cost_sum is None:
            cost_sum = sums[id(cost)] = CostSum.of(cost)
        _add(found, key, cost_sum)
    return found


def _add(found: dict[Key, CostSum], key: Key, cost_sum: CostSum) -> None:
    known = found.get(key)
    if known is None:
        known = found[key] = CostSum(flops=None, elementwise_ops=None)
    known.add(cost_sum)
