"""Tensor subclasses."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class Marked(Tensor):
    """A tensor subclass without data of its own."""


class Logged(Tensor):
    """A tensor subclass that hears every function."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs)


class Wrapped(Tensor):
    """A wrapper subclass: two tensors behind one face."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, named = tree_map(
            lambda value: value.inner if isinstance(value, cls) else value, (args, kwargs or {})
        )
        return func(*given, **named)
