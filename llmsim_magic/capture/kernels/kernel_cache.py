"""Cache the results of kernels on `meta`, by kernel and arguments.

The result of a meta kernel depends only on the shapes, strides and dtypes of its tensors and on
plain values. Many meta kernels are written in Python and slow, and the layers of a model call
them again and again with equal arguments. That of a pointwise kernel on dense tensors depends on
their sizes only by which of them are equal, so that another batch or context needs no other run.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch

from llmsim_magic.capture.kernels.kernel_facts import facts

_PLAIN = (
    int,
    float,
    bool,
    str,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_FIXED_SIZES = (0, 1)  # which broadcast or hold nothing, unlike all others


class _Uncacheable(Exception):
    """An argument from which no cache key can be made."""


class KernelCache:
    """Factories of kernel results by kernel and arguments; emptied when it is full.

    Args:
        max_entries: Number of results at which the cache is emptied.
    """

    def __init__(self, max_entries: int = 4_000) -> None:
        self._factories: dict[Any, Callable[[list[int]], Any]] = {}
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
            New tensors on `meta`, never the ones of an earlier call; for a kernel in place, its
            first argument.
        """
        kernel = facts(func)
        if kernel.may_alias and not kernel.only_updates_first:
            return func(*args, **kwargs)
        call = (args, tuple(kwargs.items()))
        sizes = [*_FIXED_SIZES]
        try:
            key = _pattern(call, sizes) if kernel.is_pointwise else None
            if key is None:
                sizes.clear()
                key = _key(call)
        except _Uncacheable:
            return func(*args, **kwargs)
        factory = self._factories.get((id(func), key))  # `facts` keeps the op, and so its id
        if factory is not None:
            return args[0] if kernel.only_updates_first else factory(sizes)
        out = func(*args, **kwargs)
        factory = _no_outputs if kernel.only_updates_first else _factory(out, args, sizes)
        if factory is not None:
            if len(self._factories) >= self._max_entries:
                self._factories.clear()
            self._factories[id(func), key] = factory
        return out


def _no_outputs(sizes: list[int]) -> tuple[torch.Tensor, ...]:
    """The factory of a kernel in place: that it is known says that it accepts the arguments."""
    return ()


def _key(value: Any) -> Any:
    """A key that is equal for equal arguments."""
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        _require_strided(value)
        return (value.shape, value.stride(), value.dtype)
    if kind is tuple or kind is list:
        return tuple(map(_key, value))
    if kind in _PLAIN:
        return (kind, value)
    raise _Uncacheable


def _pattern(value: Any, sizes: list[int]) -> Any:
    """As `_key`, but with the places of sizes in `sizes`, which it extends, instead of the sizes.

    Returns None if a tensor is not dense.
    """
    kind = type(value)
    if kind in _PLAIN_TENSORS:
        _require_strided(value)
        layout = _layout(value.shape, value.stride(), sizes)
        return None if layout is None else (layout, value.dtype)
    if kind is tuple or kind is list:
        parts = [_pattern(each, sizes) for each in value]
        return None if None in parts else tuple(parts)
    return _key(value)


def _require_strided(tensor: torch.Tensor) -> None:
    if not tensor.is_meta or tensor.is_complex() or tensor.layout is not torch.strided:
        raise _Uncacheable


def _layout(
    shape: tuple[int, ...], strides: tuple[int, ...], sizes: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The places in `sizes` of a dense tensor's sizes, and its axes from the innermost outwards.

    Returns None if memory is skipped or shared; `sizes` is extended by what it lacks.
    """
    axes = sorted(range(len(shape)), key=lambda axis: (strides[axis], shape[axis], -axis))
    if strides != _dense_strides(shape, axes):
        return None
    sizes += [size for size in dict.fromkeys(shape) if size not in sizes]
    return tuple(map(sizes.index, shape)), tuple(axes)


def _dense_strides(shape: tuple[int, ...], axes: list[int] | tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for axis in axes:
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _factory(
    out: Any, args: tuple[Any, ...], sizes: list[int]
) -> Callable[[list[int]], Any] | None:
    """A function that creates tensors like `out`; None unless all are new plain tensors.

    If there are `sizes`, the function takes those of another call with the same pattern.
    """
    outs = out if isinstance(out, tuple) else (out,)
    if any(type(tensor) is not torch.Tensor or not tensor.is_meta for tensor in outs):
        return None
    inputs = {a.untyped_storage()._cdata for a in args if isinstance(a, torch.Tensor)}
    if any(tensor.untyped_storage()._cdata in inputs or tensor.storage_offset() for tensor in outs):
        return None
    if not all(map(_fills_storage, outs)):
        return None
    create = _same_sizes(outs)
    if sizes:
        created = _other_sizes(outs, sizes)
        if created is None:
            return None
        create = created
    return create if isinstance(out, tuple) else lambda sizes: create(sizes)[0]


def _fills_storage(tensor: torch.Tensor) -> bool:
    """Whether a tensor's storage ends with its last element; some kernels pad their rows."""
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    needed = (last + 1) * tensor.element_size() if tensor.numel() else 0
    return needed == tensor.untyped_storage().nbytes()


def _same_sizes(outs: tuple[torch.Tensor, ...]) -> Callable[[list[int]], tuple[torch.Tensor, ...]]:
    specs = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in outs]
    return lambda _: tuple(itertools.starmap(_empty, specs))


def _other_sizes(
    outs: tuple[torch.Tensor, ...], sizes: list[int]
) -> Callable[[list[int]], tuple[torch.Tensor, ...]] | None:
    """As `_same_sizes`, from sizes that take the places of these; None if some are not theirs."""
    known = [*sizes]
    specs = [(_layout(tensor.shape, tensor.stride(), known), tensor.dtype) for tensor in outs]
    layouts = [(*layout, dtype) for layout, dtype in specs if layout is not None]
    if len(layouts) < len(outs) or len(known) > len(sizes):
        return None

    def create(sizes: list[int]) -> tuple[torch.Tensor, ...]:
        shaped = [
            (tuple([sizes[i] for i in places]), axes, dtype) for places, axes, dtype in layouts
        ]
        return tuple(
            [_empty(shape, _dense_strides(shape, axes), dtype) for shape, axes, dtype in shaped]
        )

    return create


def like(tensor: torch.Tensor) -> torch.Tensor:
    """A new tensor on `meta` as `torch.empty_like` makes it, which takes far longer there."""
    axes = sorted(range(tensor.dim()), key=tensor.stride().__getitem__)
    if tensor.stride() != _dense_strides(tensor.shape, axes):
        return torch.empty_like(tensor)
    return _empty(tensor.shape, tensor.stride(), tensor.dtype)


def _empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
