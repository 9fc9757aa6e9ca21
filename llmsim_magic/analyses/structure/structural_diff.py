"""The structural difference of two models: modules that were added, removed or changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmsim_magic.analyses.structure.module_tree import ModuleNode, module_tree
from llmsim_magic.analyses.structure.tree_alignment import align
from llmsim_magic.records.trace.trace import Scalar, Trace

Status = Literal["same", "changed", "added", "removed"]
Value = Scalar | tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Change:
    """One property of a module in both models; None where a model does not have it.

    Attributes:
        what: `type`, `name`, `layers`, the name of a weight or of an attribute, or what of a
            weight: `weight dtype`, `weight tied to`.
        first: its value in the first model; a shape is a tuple.
        second: its value in the second model.
    """

    what: str
    first: Value
    second: Value


@dataclass(frozen=True, slots=True)
class ModuleDifference:
    """A module of one model and the one that corresponds to it in the other.

    Attributes:
        first: the module in the first model; None if only the second has it.
        second: the module in the second model; None if only the first has it.
        changes: what differs between the two modules themselves, not below them.
    """

    first: ModuleNode | None
    second: ModuleNode | None
    changes: tuple[Change, ...]

    @property
    def status(self) -> Status:
        if self.first is None:
            return "added"
        if self.second is None:
            return "removed"
        return "changed" if self.changes else "same"


def structural_diff(first: Trace, second: Trace) -> tuple[ModuleDifference, ...]:
    """The modules of two models, those that correspond in one row, in the order in which they run.

    Identical layers are one module (`module_tree`), and `tree_alignment` says which modules
    correspond, also where paths, numbers of layers or classes differ.

    Args:
        first: a pass of the first model.
        second: a pass of the second model, with the same workload.
    """
    return tuple(
        ModuleDifference(a, b, tuple(_changes(a, b)) if a and b else ())
        for a, b in align(module_tree(first), module_tree(second))
    )


def _changes(first: ModuleNode, second: ModuleNode) -> Iterator[Change]:
    if first.type != second.type:
        yield Change("type", first.type, second.type)
    has_names = bool(first.name and second.name) and not (first.is_layer and second.is_layer)
    if has_names and first.name != second.name:
        yield Change("name", first.name, second.name)
    counts = [max(1, len(node.place.indices)) for node in (first, second)]
    if counts[0] != counts[1]:
        yield Change("layers", *counts)
    weights = list(_weight_changes(first, second))
    yield from weights
    yield from _attribute_changes(first, second, weights)


def _weight_changes(first: ModuleNode, second: ModuleNode) -> Iterator[Change]:
    for name in dict.fromkeys((*first.weights, *second.weights)):
        one, other = first.weights.get(name), second.weights.get(name)
        if one is None or other is None:
            yield Change(name, one.shape if one else None, other.shape if other else None)
            continue
        if one.shape != other.shape:
            yield Change(name, one.shape, other.shape)
        if one.dtype != other.dtype:
            yield Change(f"{name} dtype", one.dtype, other.dtype)
        if (one.tied_to is None) != (other.tied_to is None):
            yield Change(f"{name} tied to", one.tied_to, other.tied_to)


def _attribute_changes(
    first: ModuleNode, second: ModuleNode, weights: list[Change]
) -> Iterator[Change]:
    """Attributes that differ; of different classes those that both have.

    Without those that number the layers of either model, and sizes that the weights have too.
    """
    if first.type == second.type:
        names = dict.fromkeys((*first.attributes, *second.attributes))
    else:
        names = dict.fromkeys(name for name in first.attributes if name in second.attributes)
    resized = {
        sizes
        for change in weights
        if isinstance(change.first, tuple) and isinstance(change.second, tuple)
        for sizes in zip(change.first, change.second, strict=False)
    }
    for name in names:
        values = first.attributes.get(name), second.attributes.get(name)
        is_counter = name in first.counters or name in second.counters
        if values[0] != values[1] and not is_counter and values not in resized:
            yield Change(name, *values)
