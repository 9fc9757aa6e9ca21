"""How a model is distributed over devices."""

from dataclasses import dataclass

from llmsim_magic.records.errors import InvalidValue
from llmsim_magic.records.trace.workload import whole_number


@dataclass(frozen=True, slots=True)
class Parallel:
    """Tensor (`tp`), pipeline (`pp`) and expert (`ep`) parallel sizes, and the traced `stage`.

    `tp` and `ep` use the same ranks. A trace shows the first rank of a stage, which holds the
    largest shard if sizes do not divide.

    Raises:
        InvalidValue: If a size is below 1, the stage does not exist, or `ep` conflicts with `tp`.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    stage: int = 0

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "ep"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        if not 0 <= self.stage < self.pp:
            raise InvalidValue.must_be("stage", self.stage, f"a stage from 0 to {self.pp - 1}")
        if self.tp > 1 and self.ep not in (1, self.tp):
            raise InvalidValue.must_be("ep", self.ep, f"1 or the same as tp, {self.tp}")

    @property
    def width(self) -> int:
        """The number of ranks per pipeline stage."""
        return max(self.tp, self.ep)

    @property
    def ranks(self) -> int:
        """The total number of devices."""
        return self.width * self.pp

    @property
    def is_one(self) -> bool:
        return self.ranks == 1

    def __str__(self) -> str:
        sizes = [(name, getattr(self, name)) for name in ("tp", "pp", "ep")]
        return " ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one device"
