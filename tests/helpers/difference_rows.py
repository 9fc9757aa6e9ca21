"""The structural difference of two models or modules as short rows."""

from typing import Any

import torch
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.analyses.structure.structural_diff import structural_diff
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.views.tables.differences import change_text

Row = tuple[str, str | None, str | None, str]  # status, both paths, change


class Chain(nn.Module):
    """Runs its modules one after the other."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            for each in module if isinstance(module, nn.ModuleList) else [module]:
                x = each(x)
        return x


def trace_of(model: Any, **options: Any) -> Trace:
    """A short prefill of a model."""
    return llmsim.trace(model, context=4, **options).trace


def trace_of_module(module: nn.Module) -> Trace:
    """A pass of a module that reads 8 features."""
    return llmsim.trace(module, inputs=torch.zeros(2, 8)).trace


def difference_rows(first: Trace, second: Trace) -> list[Row]:
    """The rows of the structural difference."""
    return [
        (
            row.status,
            row.first.place.path if row.first else None,
            row.second.place.path if row.second else None,
            "; ".join(map(change_text, row.changes)),
        )
        for row in structural_diff(first, second)
    ]


def module_rows(first: nn.Module, second: nn.Module) -> list[Row]:
    """The rows of the structural difference of two modules that read 8 features."""
    return difference_rows(trace_of_module(first), trace_of_module(second))


def unlike(rows: list[Row]) -> list[Row]:
    """The rows that are not `same`."""
    return [row for row in rows if row[0] != "same"]
