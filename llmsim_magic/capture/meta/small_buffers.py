"""Compute small buffers for real while a model is built on `meta`.

Their values (strides, index tables, rotary frequencies) follow from the config alone, and a
forward may compute sizes from them; on `meta` they would be lost.
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
MAX_BUFFER_ELEMENTS = 65_536  # larger buffers stay on meta
MAX_TENSORS = 150_000  # parameters and buffers; Switch-C has 123,000 and takes a minute to build


class TooManyWeights(Exception):
    """The model has too many parameters and buffers to be built."""


class _FunctionMode(TorchFunctionMode):
    """Creates tensors from Python values on the host; no dispatch mode sees `torch.tensor`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.tensor and keywords.get("device") == META:
            keywords["device"] = CPU
        return func(*args, **keywords)


class BufferMode(TorchDispatchMode):
    """Computes small tensors on the host if their inputs are known; weights stay on `meta`.

    Args:
        stopped: Polled at each kernel; the build is interrupted once it returns True.
    """

    def __init__(self, stopped: IsCancelled) -> None:
        super().__init__()
        self._stopped = stopped
        self._unknown: dict[int, torch.UntypedStorage] = {}
        self._rng = PrivateRng()
        self._created = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._stopped():
            raise KeyboardInterrupt
        keywords = dict(kwargs or {})
        tensors = list(tensors_in((args, keywords)))
        if any(tensor.is_meta for tensor in tensors):
            return self._on_meta(func, args, keywords)
        self._created += not tensors
        if self._created > MAX_TENSORS:
            raise TooManyWeights(f"the model has more than {MAX_TENSORS:,} weights and buffers")
        if keywords.get("device") == META and not facts(func).is_allocation:
            created = func(*args, **keywords) if not tensors else None
            if created is None or created.numel() <= MAX_BUFFER_ELEMENTS:
                return self._rng.run(func, args, {**keywords, "device": CPU})
            return created
        return self._rng.run(func, args, keywords)

    def _on_meta(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        mutated = mutated_tensors(func, args, keywords)
        if mutated and not any(tensor.is_meta for tensor in mutated):
            for tensor in mutated:
                storage = tensor.untyped_storage()
                self._unknown[storage._cdata] = storage
            return mutated[0] if len(func._schema.returns) == 1 else None
        if mutated and facts(func).is_random:
            return mutated[0]  # skips the random initialisation of weights: most of the build time
        if keywords.get("device") is not None:
            keywords["device"] = META
        args, keywords = tree_map(_to_meta, (args, keywords))
        return func(*args, **keywords)

    def move_to_meta(self, model: torch.nn.Module) -> None:
        """Move a model's parameters to `meta`, and its buffers that are large or not known."""
        parameters: dict[int, torch.nn.Parameter] = {}
        buffers: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    moved = torch.nn.Parameter(
                        _to_meta(parameter.detach()), parameter.requires_grad
                    )
                    module._parameters[name] = parameters.setdefault(id(parameter), moved)
            for name, buffer in module._buffers.items():
                if buffer is not None and not self._has_values(buffer):
                    module._buffers[name] = buffers.setdefault(id(buffer), _to_meta(buffer))

    def _has_values(self, buffer: torch.Tensor) -> bool:
        is_small = buffer.numel() <= MAX_BUFFER_ELEMENTS
        return is_small and buffer.untyped_storage()._cdata not in self._unknown


def _to_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, torch.Tensor) else value


@contextmanager
def tracking_buffers() -> Iterator[BufferMode]:
    """Compute the small buffers of a model that is built in this context for real.

    Yields:
        The dispatch mode; call its `move_to_meta` with the model once it is built.

    Raises:
        KeyboardInterrupt: The build was cancelled.
        TooManyWeights: The model has more than `MAX_TENSORS` parameters and buffers.
    """
    with DeferredInterrupt() as stopped, BufferMode(stopped) as mode, _FunctionMode():
        yield mode


def small_buffer_copy(buffer: torch.Tensor) -> torch.Tensor | None:
    """Return a copy of a live module's buffer on the host; None if it is too large to keep."""
    is_small = buffer.numel() <= MAX_BUFFER_ELEMENTS
    has_strides = buffer.layout is torch.strided and not buffer.is_nested
    if buffer.is_meta or not has_strides or not is_small:
        return None
    return buffer.detach().to(CPU, copy=True)
