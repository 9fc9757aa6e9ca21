"""What ran: tensors, kernels and operators in the order of the pass.

There are many of each, so they are structs: quick to make, and nothing for the garbage collector.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from msgspec import Struct

Role = Literal["parameter", "buffer", "input", "cache", "constant", "activation"]


class Storage(Struct, frozen=True, gc=False):
    """A block of memory that tensors look into.

    `name` says whose it is: a parameter, a buffer, an input or a slot of the cache.
    A cache that the pass itself wrote has the role `cache` and was empty before.
    """

    nbytes: int
    role: Role
    name: str | None


class Tensor(Struct, frozen=True, gc=False):
    """A view into a storage: `offset` and `strides` count elements."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    storage: int
    offset: int
    strides: tuple[int, ...]


class Kernel(Struct, frozen=True, gc=False):
    """One ATen op. `inputs`, `outputs` and `writes` index the tensors of its record.

    `writes` holds what it wrote: fresh outputs and arguments changed in place.
    `flops` is None where torch knows no formula for the kernel. `causal` marks attention that
    may skip the keys after each query.
    """

    name: str
    operator: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    writes: tuple[int, ...]
    is_view: bool
    pointwise: bool
    causal: bool
    flops: int | None


class Operator(Struct, frozen=True, gc=False):
    """One step of the forward pass as its author wrote it; its place in the record is its order.

    `held` are tensors that its callers have names for while it runs.
    """

    path: str
    op: str
    kind: Literal["module", "function"]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str | None
    held: tuple[int, ...] = ()


class Calls(Struct, frozen=True, gc=False):
    """How often a module was called, and the tensors of its first call.

    `held` are tensors that its caller has names for meanwhile, or itself beside its layers.
    """

    path: str
    number: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    held: tuple[int, ...] = ()


@dataclass(frozen=True)
class Record:
    """Operators in execution order with their kernels; `results` are what the pass returned."""

    storages: tuple[Storage, ...]
    tensors: tuple[Tensor, ...]
    kernels: tuple[Kernel, ...]
    operators: tuple[Operator, ...]
    calls: tuple[Calls, ...]
    results: tuple[int, ...]

    @cached_property
    def kernels_by_operator(self) -> tuple[tuple[Kernel, ...], ...]:
        """The kernels of each operator, views left out."""
        grouped: list[list[Kernel]] = [[] for _ in self.operators]
        for kernel in self.kernels:
            if kernel.operator is not None and not kernel.is_view:
                grouped[kernel.operator].append(kernel)
        return tuple(map(tuple, grouped))

    @cached_property
    def calls_by_path(self) -> dict[str, Calls]:
        """The calls of each module that ran, by its path."""
        return {calls.path: calls for calls in self.calls}

    def new_storages(self, first: int, last: int) -> frozenset[int]:
        """What the kernels from one to before another touch, and no earlier one does."""

        def touched(kernels: Iterable[Kernel]) -> set[int]:
            return {
                self.tensors[index].storage
                for kernel in kernels
                for index in (*kernel.inputs, *kernel.outputs)
            }

        return frozenset(touched(self.kernels[first:last]) - touched(self.kernels[:first]))

    def shapes(self, tensors: Iterable[int]) -> list[tuple[int, ...]]:
        return [self.tensors[index].shape for index in tensors]


@dataclass(frozen=True, slots=True)
class Replay:
    """A layer that did what an earlier one had done, and so was not run again.

    `path` did what the record says of `of`: its operators from `operators[0]` to before
    `operators[1]`, and its kernels likewise. It stands before operator `before_operator` and
    kernel `before_kernel` of the record. `tensors` pairs those that cross the border of the layer
    recorded with its own: what it is given, hands on and keeps. `calls` are those made
    in it, as recorded; `is_first` says that the layer had not been called before.
    """

    path: str
    of: str
    operators: tuple[int, int]
    kernels: tuple[int, int]
    before_operator: int
    before_kernel: int
    tensors: tuple[tuple[int, int], ...]
    calls: tuple[Calls, ...]
    is_first: bool

    def map_path(self, path: str) -> str:
        """The path in this layer of what has `path` in the one recorded, or lies outside it."""
        if path == self.of or path.startswith(f"{self.of}."):
            return self.path + path[len(self.of) :]
        return path
