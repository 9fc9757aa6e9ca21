"""Lists that a loop makes longer step by step: what they hold is told once, not at every step."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Protocol

import torch


class Step(Protocol):
    """What runs while somebody has a name for a list, and may turn out to be an operator."""

    held: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Kept:
    """A list of tensors for as long as it only gains some, and how many each step found in it."""

    value: list[Any]
    items: list[torch.Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # how many numbers there were at each step
    steps: list[Step] = field(default_factory=list)

    def goes_on(self) -> bool:
        return len(self.value) >= len(self.items) and all(map(is_, self.items, self.value))


class ListLifetimes:
    """Which operator was the last to run while a list held its tensors.

    Steps follow one another, so that the last speaks for those before it.
    """

    def __init__(self, numbers: Callable[[Any], tuple[int, ...]]) -> None:
        """`numbers` gives those of all tensors in a value."""
        self._numbers = numbers
        self._open: dict[int, _Kept] = {}
        self._all: list[_Kept] = []

    def note(self, step: Step, value: list[Any]) -> bool:
        """The list is held during the step; False, and not noted, where not all are tensors."""
        kept = self._open.get(id(value))
        if kept is None or not kept.goes_on():
            kept = self._open[id(value)] = _Kept(value)
            self._all.append(kept)
        gained = value[len(kept.items) :]
        if not all(isinstance(item, torch.Tensor) for item in gained):
            del self._open[id(value)]
            return False
        kept.items += gained
        kept.numbers += self._numbers(gained)
        kept.ends.append(len(kept.numbers))
        kept.steps.append(step)
        return True

    def part(self) -> None:
        """What runs from here on does not speak for what ran before: a layer begins or ends."""
        self._open.clear()

    def tell(self, operators: Collection[Step]) -> None:
        """At the end of the pass, when it is known which steps are operators."""
        for kept in self._all:
            for step, end in zip(reversed(kept.steps), reversed(kept.ends), strict=True):
                if step in operators:
                    step.held += tuple(kept.numbers[:end])
                    break
