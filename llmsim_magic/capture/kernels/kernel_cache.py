"""Cache the results of kernels on `meta`, by kernel and arguments.

The result of a meta kernel depends only on the shapes, strides and dtypes of its tensors and on
plain values. Many meta kernels are written in Python and slow, and the layers of a model call
them again and again with equal arguments.
"""

from collections.abc import Callable
from typing import Any

import torch

from llmsim_magic.capture.kernels.kernel_facts import facts

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout)
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


class _Uncacheable(Exception):
    """An argument from which no cache key can be made."""


class KernelCache:
    """Factories of kernel results by kernel and arguments; emptied when it is full.

    Args:
        max_entries: Number of results at which the cache is emptied.
    """

    def __init__(self, max_entries: int = 4_000) -> None:
        self._factories: dict[Any, Callable[[], Any]] = {}
        self._max_entries = max_entries

    def __len__(self) -> int:
        return len(self._factories)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a kernel's result, running the kernel only if the cache has none.

        Args:
            func: The `OpOverload` to call.
            args: Its positional arguments, all tensors on `meta`.
            kwargs: Its keyword arguments.

        Returns:
            New tensors on `meta`; never the ones of an earlier call.
        """
        if facts(func).may_alias:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
        except _Uncacheable:
            return func(*args, **kwargs)
        factory = self._factories.get(key)
        if factory is not None:
            return factory()
        out = func(*args, **kwargs)
        factory = _factory(out, args)
        if factory is not None:
            if len(self._factories) >= self._max_entries:
                self._factories.clear()
            self._factories[key] = factory
        return out


def _key(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        if not value.is_meta or value.is_complex() or value.layout is not torch.strided:
            raise _Uncacheable
        return (value.shape, value.stride(), value.dtype)
    if kind is tuple or kind is list:
        return tuple(map(_key, value))
    if kind in _PLAIN:
        return (kind, value)
    raise _Uncacheable


def _factory(out: Any, args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """A function that creates tensors like `out`; None unless all are new plain tensors."""
    outs = out if isinstance(out, tuple) else (out,)
    if any(type(tensor) is not torch.Tensor or not tensor.is_meta for tensor in outs):
        return None
    inputs = {a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)}
    if any(tensor.untyped_storage()._cdata in inputs or tensor.storage_offset() for tensor in outs):
        return None
    specs = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in outs]
    is_tuple = isinstance(out, tuple)

    def create() -> Any:
        created = tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for shape, stride, dtype in specs
        )
        return created if is_tuple else created[0]

    return create
