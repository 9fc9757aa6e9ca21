"""Tensors, kernels and operators in execution order.

They are msgspec structs because there are many: quick to create and invisible to the collector.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

Role = Literal[
    "parameter",
    "buffer",
    "input",
    "cache",
    "constant",
    "activation",
    "gradient",
    "optimizer",
    "host",
    "gathered",
    "exchange",
]
# Parameters, those among them that a rank gathers from the shards of all ranks.
WEIGHT_ROLES: tuple[Role, ...] = ("parameter", "gathered")
# Which part of a training step an operator runs in; every operator of other phases is `forward`.
Pass = Literal["forward", "recompute", "backward", "optimizer"]
PASSES: tuple[Pass, ...] = ("forward", "recompute", "backward", "optimizer")


class Storage(Struct, frozen=True, gc=False):
    """A block of memory that one or more tensors view.

    `name` is that of the parameter, buffer, input or cache slot it belongs to. A cache that the
    pass itself allocates has the role `cache`. Under training, a `gradient` is that of a parameter,
    `optimizer` is a tensor that the optimizer keeps from step to step, and `host` is one that it
    keeps in managed memory, which kernels use but which takes none of the device's memory.
    `gathered` is a parameter of which the rank holds a shard, while the rank has all of it; the
    sharded gradients that are reduced together have the path of their module as the name.
    `exchange` is a buffer of a collective on a stream of its own, whose memory no other stream is
    given.
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

    @property
    def nbytes(self) -> int:
        """Bytes of all elements; those that a broadcast repeats count each time."""
        return math.prod(self.shape) * self.itemsize

    def shifted(self, nbytes: int) -> "Tensor":
        """The tensor that lies `nbytes` further on in its storage."""
        return replace(self, offset=self.offset + nbytes // self.itemsize) if nbytes else self


class Kernel(Struct, frozen=True, gc=False):
    """One ATen op; `inputs`, `outputs` and `writes` index the tensors of its record.

    `writes` are new outputs and arguments changed in place. `flops` is None if torch has no formula
    for the kernel. `causal` marks attention that may skip the keys after each query. `held` are
    tensors that no later kernel of the operator uses, and that variables inside it last reference
    while this one runs, and casts that autocast keeps until then. Under training, `frees` are the
    storages that nothing refers to any more when this kernel has run and before the next one
    allocates. `ranks` are the devices of a collective of data parallelism; other collectives are
    among those of the model's plan.
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
    held: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()
    ranks: int = 0


class Operator(Struct, frozen=True, gc=False):
    """One step of the forward pass as its author wrote it; its index in the record is its order.

    `held` are tensors that variables of its callers reference while it runs. Under training,
    `part` is the pass of the step that runs it, `backward_of` the operator whose gradients a
    backward operator computes, and `saved` are the tensors that autograd keeps for it.
    """

    path: str
    op: str
    kind: Literal["module", "function"]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str | None
    held: tuple[int, ...] = ()
    part: Pass = "forward"
    backward_of: int | None = None
    saved: tuple[int, ...] = ()


class Calls(Struct, frozen=True, gc=False):
    """The number of calls of a module, and the tensors of its first call.

    `held` are tensors that variables of its caller, or its own, reference during the call.
    """

    path: str
    number: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    held: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """Operators in execution order with their kernels; `results` are the returned tensors."""

    storages: tuple[Storage, ...]
    tensors: tuple[Tensor, ...]
    kernels: tuple[Kernel, ...]
    operators: tuple[Operator, ...]
    calls: tuple[Calls, ...]
    results: tuple[int, ...]

    @cached_property
    def kernels_by_operator(self) -> tuple[tuple[Kernel, ...], ...]:
        """The kernels of each operator, without views."""
        grouped: list[list[Kernel]] = [[] for _ in self.operators]
        for kernel in self.kernels:
            if kernel.operator is not None and not kernel.is_view:
                grouped[kernel.operator].append(kernel)
        return tuple(map(tuple, grouped))

    @cached_property
    def kernel_parts(self) -> tuple[Pass, ...]:
        """The pass of each kernel; one of no operator is in the pass of the kernel before it."""
        found: list[Pass] = []
        part: Pass = "forward"
        for kernel in self.kernels:
            if kernel.operator is not None:
                part = self.operators[kernel.operator].part
            found.append(part)
        return tuple(found)

    @cached_property
    def calls_by_path(self) -> dict[str, Calls]:
        """The calls of each executed module, by path."""
        return {calls.path: calls for calls in self.calls}

    def new_storages(self, first: int, last: int) -> frozenset[int]:
        """Storages that kernels `first` to before `last` use and no earlier kernel does."""

        def touched(kernels: Iterable[Kernel]) -> set[int]:
            return {
                self.tensors[index].storage
                for kernel in kernels
                for index in (*kernel.inputs, *kernel.outputs)
            }

        return frozenset(touched(self.kernels[first:last]) - touched(self.kernels[:first]))

    def shapes(self, tensors: Iterable[int]) -> list[tuple[int, ...]]:
        return [self.tensors[index].shape for index in tensors]


class Replay(Struct, frozen=True, kw_only=True, gc=False):
    """A layer that repeats a recorded layer and was therefore not run.

    The layer `path` repeats the layer `of`: its operators from `operators[0]` to before
    `operators[1]`, and its kernels likewise. In the pass it precedes operator `before_operator` and
    kernel `before_kernel` of the record. `tensors` maps inputs, outputs and state of the recorded
    layer to those of this one. `calls` are the recorded calls inside the layer; `is_first` is True
    for the first call of this layer. `held` are tensors of the layer before that variables of the
    caller reference during the call. Under training, the backward of a replayed layer is a replay
    as well, which `resumes` that of its forward, by its number among the replays. `frees` are
    storages that nothing refers to any more after the call, beside those inside the layer.
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
    held: tuple[int, ...] = ()
    resumes: int | None = None
    frees: tuple[int, ...] = ()

    def map_storages(self, tensors: Sequence[Tensor]) -> dict[int, tuple[int, int]]:
        """The storages of this layer's tensors, by those of the recorded layer's counterparts.

        Args:
            tensors: The tensors of the record.

        Returns:
            Each storage with the distance in bytes by which this layer's tensors lie further on in
            it. Layers that get one slice each of a common tensor use it at different distances.
        """
        return {
            tensors[one].storage: (
                tensors[other].storage,
                tensors[other].offset * tensors[other].itemsize
                - tensors[one].offset * tensors[one].itemsize,
            )
            for one, other in self.tensors
        }

    def map_path(self, path: str) -> str:
        """A path of the recorded layer as a path of this layer; other paths are unchanged."""
        if path == self.of or path.startswith(f"{self.of}."):
            return self.path + path[len(self.of) :]
        return path
