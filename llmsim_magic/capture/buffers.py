"""Keep the values of small buffers: code may ask for them, and they follow from the config alone.

On `meta` a buffer that `__init__` fills (a stride, an index table, rotary frequencies) would lose
its values, and with them every size that the forward computes from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llmsim_magic.capture.kernels import facts
from llmsim_magic.capture.tensors import tensors_in

META = torch.device("meta")
CPU = torch.device("cpu")
LARGEST = 65_536  # elements; larger tables stay on meta


class _Values(TorchFunctionMode):
    """Tensors made of plain Python values, which no dispatch mode sees."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.tensor and keywords.get("device") == META:
            keywords["device"] = CPU
        return func(*args, **keywords)


class _Kernels(TorchDispatchMode):
    """Every other tensor: real where it is small and made of known ones; empty ones are weights."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        tensors = list(tensors_in((args, keywords)))
        if any(tensor.is_meta for tensor in tensors):
            if not all(tensor.is_meta for tensor in tensors):
                args, keywords = tree_map(on_meta, (args, keywords))
            return func(*args, **keywords)
        if keywords.get("device") == META and not facts(func).allocates:
            made = func(*args, **keywords) if not tensors else None
            if made is None or made.numel() <= LARGEST:
                return func(*args, **{**keywords, "device": CPU})
            return made
        return func(*args, **keywords)


def on_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


@contextmanager
def knowing_buffers() -> Iterator[None]:
    """While open, what a model computes for its buffers is computed for real."""
    with _Kernels(), _Values():
        yield


def only_buffers_known(model: torch.nn.Module) -> None:
    """Put every parameter, and every large buffer, back on `meta`."""
    weights: dict[int, torch.nn.Parameter] = {}
    tables: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                like = torch.nn.Parameter(parameter.detach().to(META), parameter.requires_grad)
                module._parameters[name] = weights.setdefault(id(parameter), like)
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and buffer.numel() > LARGEST:
                module._buffers[name] = tables.setdefault(id(buffer), buffer.to(META))


def known(buffer: torch.Tensor) -> torch.Tensor | None:
    """A copy of a live module's buffer, if it is small enough to keep."""
    if buffer.is_meta or buffer.numel() > LARGEST:
        return None
    return buffer.detach().to(CPU, copy=True)
