"""Which part of a pass a graph shows."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import whole_number
from llmsim_magic.records.validation import choice

LEVELS = ("module", "operator", "kernel")
Level = Literal["module", "operator", "kernel"]
Unfolded = Collection[int] | Literal["all"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The depth of opened modules, the unfolded layers, and what a node is.

    With `depth` None the graph chooses a depth. `layers` are indices of layers drawn separately, or
    "all"; other identical layers are drawn once. Level `module` collapses innermost containers.

    Raises:
        InvalidValue: If the depth is below 1 or the level does not exist.
    """

    depth: int | None = None
    layers: Unfolded = ()
    level: Level = "operator"

    def __post_init__(self) -> None:
        if self.depth is not None:
            object.__setattr__(self, "depth", whole_number("depth", self.depth))
        choice("level", self.level, LEVELS)
        object.__setattr__(self, "layers", _indices(self.layers))


def _indices(layers: object) -> Unfolded:
    if layers == "all":
        return "all"
    indices = (layers,) if isinstance(layers, int) else layers
    if not isinstance(indices, Collection) or not all(
        type(index) is int and index >= 0 for index in indices
    ):
        raise InvalidValue.must_be(
            "layers", layers, "all, or indices of layers from 0, such as 0,27"
        )
    return frozenset(indices)
