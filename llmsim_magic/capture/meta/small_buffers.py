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

from llmsim_magic.capture.kernels.kernel_facts import facts, mutated_tensors
from llmsim_magic.capture.kernels.rng import PrivateRng
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.trace.workload import IsCancelled

META = torch.device("meta")
CPU = torch.device("cpu")
LARGEST = 65_536  # elements; larger tables stay on meta
MOST = 150_000  # weights and tables of a model: Switch-C has 123,000, and takes a minute to build


class TooManyWeights(Exception):
    """A model of more parts than can be built one by one."""


class _Values(TorchFunctionMode):
    """Tensors made of plain Python values, which no dispatch mode sees."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.tensor and keywords.get("device") == META:
            keywords["device"] = CPU
        return func(*args, **keywords)


class Buffers(TorchDispatchMode):
    """Every other tensor: real where it is small and made of known ones; empty ones are weights."""

    def __init__(self, stopped: IsCancelled) -> None:
        super().__init__()
        self._stopped = stopped
        self._unknown: dict[int, torch.UntypedStorage] = {}
        self._dice = PrivateRng()
        self._made = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._stopped():
            raise KeyboardInterrupt
        keywords = dict(kwargs or {})
        tensors = list(tensors_in((args, keywords)))
        if any(tensor.is_meta for tensor in tensors):
            return self._on_meta(func, args, keywords)
        self._made += not tensors
        if self._made > MOST:
            raise TooManyWeights(f"it would be made of more than {MOST:,} weights and tables")
        if keywords.get("device") == META and not facts(func).is_allocation:
            made = func(*args, **keywords) if not tensors else None
            if made is None or made.numel() <= LARGEST:
                return self._dice.run(func, args, {**keywords, "device": CPU})
            return made
        return self._dice.run(func, args, keywords)

    def _on_meta(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        changed = mutated_tensors(func, args, keywords)
        if changed and not any(tensor.is_meta for tensor in changed):
            for tensor in changed:
                storage = tensor.untyped_storage()
                self._unknown[storage._cdata] = storage
            return changed[0] if len(func._schema.returns) == 1 else None
        if changed and facts(func).is_random:
            return changed[0]  # random numbers for a tensor without values: the bulk of a build
        if keywords.get("device") is not None:
            keywords["device"] = META
        args, keywords = tree_map(_to_meta, (args, keywords))
        return func(*args, **keywords)

    def keep_only(self, model: torch.nn.Module) -> None:
        """Put every parameter on `meta`, and every buffer that is large or not known."""
        weights: dict[int, torch.nn.Parameter] = {}
        tables: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    like = torch.nn.Parameter(_to_meta(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = weights.setdefault(id(parameter), like)
            for name, buffer in module._buffers.items():
                if buffer is not None and not self._is_kept(buffer):
                    module._buffers[name] = tables.setdefault(id(buffer), _to_meta(buffer))

    def _is_kept(self, buffer: torch.Tensor) -> bool:
        return buffer.numel() <= LARGEST and buffer.untyped_storage()._cdata not in self._unknown


def _to_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


@contextmanager
def tracking_buffers() -> Iterator[Buffers]:
    """While open, what a model computes for its buffers is computed for real.

    Once it is to be stopped, the building ends as where the user interrupts it.
    """
    with DeferredInterrupt() as stopped, Buffers(stopped) as buffers, _Values():
        yield buffers


def known_buffers(buffer: torch.Tensor) -> torch.Tensor | None:
    """A copy of a live module's buffer, if it is small enough to keep."""
    if buffer.is_meta or buffer.layout is not torch.strided or buffer.numel() > LARGEST:
        return None
    return buffer.detach().to(CPU, copy=True)
