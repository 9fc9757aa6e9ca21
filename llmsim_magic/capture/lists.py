"""Lists that a loop makes longer step by step: what they hold is told once, not at every step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Protocol

import torch


class Step(Protocol):
    """What runs while its caller has a name for a list."""

    held: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Kept:
    """A list for as long as it only gains tensors, their numbers, and the last step meanwhile."""

    caller: object
    value: list[Any]
    last: Step
    items: list[torch.Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def goes_on(self, caller: object) -> bool:
        same = caller is self.caller and len(self.value) >= len(self.items)
        return same and all(map(is_, self.items, self.value))


class Lists:
    """Says of the tensors in a list which step was the last to run while they were held.

    The steps of one caller follow one another, so that the last speaks for those before it.
    """

    def __init__(self, numbers: Callable[[Any], tuple[int, ...]]) -> None:
        """`numbers` gives those of all tensors in a value."""
        self._numbers = numbers
        self._kept: dict[int, _Kept] = {}

    def note(self, caller: object, step: Step, value: list[Any]) -> bool:
        """The list is held during the step; False, and not noted, where not all are tensors."""
        kept = self._kept.get(id(value))
        if kept is None or not kept.goes_on(caller):
            self._forget(kept)
            kept = self._kept[id(value)] = _Kept(caller, value, step)
        gained = value[len(kept.items) :]
        if not all(isinstance(item, torch.Tensor) for item in gained):
            self._forget(self._kept.pop(id(value)))
            return False
        kept.items += gained
        kept.numbers += self._numbers(gained)
        kept.last = step
        return True

    def end(self) -> None:
        """The pass is over: what was held until now is told."""
        while self._kept:
            self._forget(self._kept.popitem()[1])

    def _forget(self, kept: _Kept | None) -> None:
        if kept is not None:
            kept.last.held += tuple(kept.numbers)
