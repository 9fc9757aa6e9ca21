"""The record of one forward pass. Every view is drawn from it alone."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec

from llmsim_magic.records.workload import Workload

Role = Literal["parameter", "buffer", "input", "cache", "constant", "activation"]
Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of memory that tensors look into.

    `name` says whose it is: a parameter, a buffer, an input or a slot of the cache.
    A cache that the pass itself wrote has the role `cache` and was empty before.
    """

    nbytes: int
    role: Role
    name: str | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view into a storage: `offset` and `strides` count elements."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    storage: int
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One ATen op. `inputs`, `outputs` and `writes` index `Trace.tensors`.

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


@dataclass(frozen=True, slots=True)
class Operator:
    """One step of the forward pass as its author wrote it; its place in the record is its order."""

    path: str
    op: str
    kind: Literal["module", "function"]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str | None


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the hierarchy; shapes are those of its first call, `calls` may be 0."""

    path: str
    type: str
    is_list: bool
    calls: int
    attributes: dict[str, Scalar]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer under one of its names; `tied_to` is the first name of a shared one."""

    name: str
    owner: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    trainable: bool
    is_buffer: bool
    tied_to: str | None

    @property
    def numel(self) -> int:
        return numel(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class CacheSlot:
    """One tensor of the cache or state that the model itself built, as the pass left it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What ran: `name` as asked for, and where its config came from."""

    name: str
    class_name: str
    model_type: str | None
    head: str
    attention: str | None
    dtype: str
    origin: str


@dataclass(frozen=True)
class Trace:
    """One forward pass of one model under one workload."""

    model: ModelInfo
    workload: Workload
    modules: tuple[Module, ...]
    parameters: tuple[Parameter, ...]
    storages: tuple[Storage, ...]
    tensors: tuple[Tensor, ...]
    kernels: tuple[Kernel, ...]
    operators: tuple[Operator, ...]
    results: tuple[int, ...]
    cache: tuple[CacheSlot, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]

    @cached_property
    def kernels_of(self) -> tuple[tuple[Kernel, ...], ...]:
        """The kernels of each operator, views left out."""
        grouped: list[list[Kernel]] = [[] for _ in self.operators]
        for kernel in self.kernels:
            if kernel.operator is not None and not kernel.is_view:
                grouped[kernel.operator].append(kernel)
        return tuple(map(tuple, grouped))

    def shapes(self, tensors: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [self.tensors[index].shape for index in tensors]

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> "Trace":
        return msgspec.json.decode(data, type=cls)


def numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
