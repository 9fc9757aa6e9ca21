"""Modules whose forward keeps a tensor from pass to pass, each in a place of its own."""

from typing import Any

import torch
from torch import Tensor, nn


class Stateful(nn.Module):
    """Adds the mean of all that it has read; every pass after the first runs one more kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def last(self) -> Any:
        raise NotImplementedError

    def keep(self, x: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        last = self.last()
        x = self.lin(x) if last is None else self.lin(x) + last
        self.keep(x.mean(0))
        return x


class Plain(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None

    def last(self) -> Any:
        return self.state

    def keep(self, x: Tensor) -> None:
        self.state = x


class OnePair(Plain):
    def keep(self, x: Tensor) -> None:
        _, self.state = x, x


class WithDefaultOfClass(Stateful):
    state: Any = None

    def last(self) -> Any:
        return self.state

    def keep(self, x: Tensor) -> None:
        self.state = x


class UnderItsOwnCondition(Plain):
    def keep(self, x: Tensor) -> None:
        if self.state is None or x.shape:
            self.state = x


class InDictionary(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, Tensor] = {}

    def last(self) -> Any:
        return self.states.get("mean")

    def keep(self, x: Tensor) -> None:
        self.states["mean"] = x


class InList(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.states: list[Tensor] = []

    def last(self) -> Any:
        return self.states[-1] if self.states else None

    def keep(self, x: Tensor) -> None:
        self.states.append(x)


class InBuffer(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", None, persistent=False)

    def last(self) -> Any:
        return self.state

    def keep(self, x: Tensor) -> None:
        self.state = x


class InNamedBuffer(InBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(name="state", tensor=None)


class InNext(nn.Sequential):
    """A state in a submodule."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), Plain())


STATEFUL = (
    Plain,
    OnePair,
    WithDefaultOfClass,
    UnderItsOwnCondition,
    InDictionary,
    InList,
    InBuffer,
    InNamedBuffer,
    InNext,
)


class UnderFlag(nn.Module):
    """Computes a table at its first forward, and remembers in a flag that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.table: Any = None
        self.is_ready = False

    def prepare(self, x: Tensor) -> None:
        self.table = torch.arange(x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_ready:
            self.prepare(x)
            self.is_ready = True
        return self.lin(x)[:, self.table]


class UnderEarlyReturn(UnderFlag):
    def prepare(self, x: Tensor) -> None:
        if self.is_ready:
            return
        self.table = torch.arange(x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        self.is_ready = True
        return self.lin(x)[:, self.table]


class WithPrefix(nn.Module):
    """Reads a prefix that its user sets."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.prefix: Any = None

    def set_prefix(self, prefix: Tensor) -> None:
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x if self.prefix is None else torch.cat([self.prefix, x]))
