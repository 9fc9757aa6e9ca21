"""What of a pass a picture shows."""

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
    """How deep modules are opened, which layers are drawn by themselves, and what a node is.

    `depth` None leaves it to the picture. `layers` are indices or "all"; those not named are
    drawn as the first of their like. At level `module` the innermost containers stay closed.

    Raises `InvalidValue` for a depth below 1 or a level that does not exist.
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
