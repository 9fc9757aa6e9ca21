"""Modules that prepare themselves at their first forward, and remember that they have."""

import torch
from torch import Tensor, nn


def install(net: "KeepsWithClosures") -> None:
    """Adds hooks from outside the class whose forward calls it."""

    def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        net.seen.append(output)

    for layer in net.layers:
        layer.register_forward_hook(keep)


class KeepsWithClosures(nn.Module):
    """Multiplies the outputs of all its layers, which its hooks keep, by one more matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.ready = False
        self.seen: list[Tensor] = []

    def prepare(self) -> None:
        def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            self.seen.append(output)

        for layer in self.layers:
            layer.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.prepare()
            self.ready = True
        self.seen.clear()
        for layer in self.layers:
            x = layer(x)
        return torch.cat(self.seen) @ x.new_ones(8, 2)


class KeepsWithMethod(KeepsWithClosures):
    def prepare(self) -> None:
        for layer in self.layers:
            layer.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.seen.append(output)


class KeepsWithFunction(KeepsWithClosures):
    def prepare(self) -> None:
        install(self)


class KeepsInForwards(KeepsWithClosures):
    """Replaces the forwards of its layers; the old one is a default argument."""

    def prepare(self) -> None:
        for layer in self.layers:

            def run(x: Tensor, old=layer.forward) -> Tensor:  # type: ignore[no-untyped-def]
                self.seen.append(old(x))
                return self.seen[-1]

            layer.forward = run  # type: ignore[method-assign]


LAZY = (KeepsWithClosures, KeepsWithMethod, KeepsWithFunction, KeepsInForwards)


class KeepsMask(nn.Module):
    """Selects by a table that it computes once, in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.arange(6) < 4
        return self.lin(x[:, self.mask])
