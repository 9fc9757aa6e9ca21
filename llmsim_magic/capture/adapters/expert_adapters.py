"""Adapters of the stacked weights of experts, which peft adds only while their module runs."""

from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from peft.tuners.lora import layer


def on_meta(model: torch.nn.Module) -> None:
    """Let a model's adapters of stacked weights run on the meta device.

    Args:
        model: A model that peft has adapted; its modules' classes are replaced by subclasses.
    """
    for part in model.modules():
        if type(part) is layer.ParamWrapper:
            part.__class__ = ParamWrapper


class _Folded(layer._LoraFactorsProxy):
    """`W + scaling · B A` for weights `[experts, out, in]`, as one `baddbmm` without autocast.

    peft turns autocast off by the weight's type of device, and meta is none that torch knows.
    """

    def forward(self, W: torch.Tensor) -> torch.Tensor:  # noqa: N803
        with torch.autocast("cpu", enabled=False):  # which is that of the trace's device
            return torch.baddbmm(W, self.lhs, self.rhs, alpha=self.scaling)


def _with_globals(function: Any, **changes: Any) -> Any:
    """A copy of a function that finds other objects under some of its global names."""
    names = {**function.__globals__, **changes}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__)


_activate: Any = layer.ParamWrapper._activate_lora


class ParamWrapper(layer.ParamWrapper):
    """peft's own, except that it adds the adapters by `_Folded`."""

    _activate_lora = contextmanager(_with_globals(_activate.__wrapped__, _LoraFactorsProxy=_Folded))
