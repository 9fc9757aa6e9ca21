"""Lifetimes of tensors in lists that grow step by step, such as a list of hidden states."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Protocol

import torch


class Step(Protocol):
    """A call during which a local variable holds the list; it may become an operator."""

    held: tuple[int, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class _GrowingList:
    """A list to which tensors are only appended, and its length at each step."""

    value: list[Any]
    items: list[torch.Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # length of `numbers` at each step
    steps: list[Step] = field(default_factory=list)

    def still_grows(self) -> bool:
        return len(self.value) >= len(self.items) and all(map(is_, self.items, self.value))


class ListLifetimes:
    """Finds the last operator that runs while a list holds its tensors.

    Noting only the last one suffices, because operators run one after another.

    Args:
        numbers: Returns the numbers of all tensors in a value.
    """

    def __init__(self, numbers: Callable[[Any], tuple[int, ...]]) -> None:
        self._numbers = numbers
        self._open: dict[int, _GrowingList] = {}
        self._all: list[_GrowingList] = []

    def note(self, step: Step, value: list[Any]) -> bool:
        """Note that a local variable holds a list during a step.

        Args:
            step: The call that runs.
            value: The list.

        Returns:
            False if not all its items are tensors; then it is not noted.
        """
        growing = self._open.get(id(value))
        if growing is None or not growing.still_grows():
            growing = self._open[id(value)] = _GrowingList(value=value)
            self._all.append(growing)
        added = value[len(growing.items) :]
        if not all(isinstance(item, torch.Tensor) for item in added):
            del self._open[id(value)]
            return False
        growing.items += added
        growing.numbers += self._numbers(added)
        growing.ends.append(len(growing.numbers))
        growing.steps.append(step)
        return True

    def start_section(self) -> None:
        """Track all lists anew, because a layer begins or ends."""
        self._open.clear()

    def assign(self, operators: Collection[Step]) -> None:
        """Add each list's tensors to `held` of the last operator that ran while it held them.

        Args:
            operators: The steps that became operators.
        """
        for growing in self._all:
            for step, end in zip(reversed(growing.steps), reversed(growing.ends), strict=True):
                if step in operators:
                    step.held += tuple(growing.numbers[:end])
                    break
