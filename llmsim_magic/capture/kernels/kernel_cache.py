"""Remember what a kernel makes on `meta`: equal arguments give an equal result.

A meta kernel is a function of its arguments' shapes, strides and dtypes and of plain values; many
are written in Python and slow, and the layers of a model ask the same of them again and again.
"""

from collections.abc import Callable
from typing import Any

import torch

from llmsim_magic.capture.kernels.kernel_facts import facts

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout)
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


class _Unlike(Exception):
    """An argument that no key can be made of."""


class KernelCache:
    """The results so far by kernel and arguments, forgotten all at once when they are too many."""

    def __init__(self, most: int = 4_000) -> None:
        self._known: dict[Any, Any] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._known)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The kernel's result: new tensors, run for real only the first time."""
        if facts(func).aliases:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(tuple(kwargs.items())))
        except _Unlike:
            return func(*args, **kwargs)
        make = self._known.get(key)
        if make is not None:
            return make()
        out = func(*args, **kwargs)
        made = _maker(out, args)
        if made is not None:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[key] = made
        return out


def _key(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        if not value.is_meta or value.is_complex() or value.layout is not torch.strided:
            raise _Unlike
        return (value.shape, value.stride(), value.dtype)
    if kind is tuple or kind is list:
        return tuple(map(_key, value))
    if kind in _PLAIN:
        return (kind, value)
    raise _Unlike


def _maker(out: Any, args: tuple[Any, ...]) -> Callable[[], Any] | None:
    """What makes the like of a result; None for one that is not made of new plain tensors."""
    outs = out if isinstance(out, tuple) else (out,)
    if any(type(tensor) is not torch.Tensor or not tensor.is_meta for tensor in outs):
        return None
    given = {a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)}
    if any(tensor.untyped_storage()._cdata in given or tensor.storage_offset() for tensor in outs):
        return None
    specs = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in outs]
    is_tuple = isinstance(out, tuple)

    def make() -> Any:
        made = tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for shape, stride, dtype in specs
        )
        return made if is_tuple else made[0]

    return make
