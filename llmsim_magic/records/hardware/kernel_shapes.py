"""Kernels by what decides how long they take: their sizes.

Each knows its class, its least work (FLOPs, a multiply-add is two; bytes, each operand once) and
its `place`: where it stands among others of its class, in powers of two. All of these are computed
once for each object, because a pass is priced on many devices.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from llmsim_magic.records.hardware.dtypes import BITS, arithmetic

Coordinates = tuple[float, ...]
StreamKind = Literal["elementwise", "gated", "normalisation", "softmax", "rotary", "embedding"]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """`groups` products of an m × k by a k × n matrix: one of a linear layer, many of experts.

    `weight_bits` is what an element of the k × n matrix is stored in; `scaled` says how 8-bit
    operands are scaled: by tensor (or row), or by block.
    """

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    groups: int = 1
    weight_bits: float | None = None
    scaled: Literal["tensor", "block"] = "tensor"

    @cached_property
    def kind(self) -> str:
        bits = BITS[arithmetic(self.dtype)]
        name = {16: "16-bit", 32: "32-bit"}.get(bits, arithmetic(self.dtype))
        return f"matmul {name}" + (" by block" if self.scaled == "block" else "")

    @cached_property
    def flops(self) -> float:
        return 2.0 * self.groups * self.m * self.n * self.k

    @cached_property
    def weight_bytes(self) -> float:
        bits = self.weight_bits or BITS[arithmetic(self.dtype)]
        return self.groups * self.n * self.k * bits / 8

    @cached_property
    def bytes(self) -> float:
        """Both operands, and a result of at least 16 bits."""
        bits = BITS[arithmetic(self.dtype)]
        rows = self.groups * self.m
        return self.weight_bytes + rows * (self.k * bits + self.n * max(bits, 16)) / 8

    @cached_property
    def place(self) -> Coordinates:
        return (math.log2(self.m), math.log2(self.n * self.groups), math.log2(self.k))


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Fused attention of `queries` new tokens over `keys` (those included), per sequence.

    Values are `value_dim` wide, as wide as keys if None. With `is_latent` they are the first
    channels of the keys, as in multi-head latent attention, and not read again.
    """

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    queries: int
    keys: int
    causal: bool = True
    dtype: str = "bf16"
    kv_dtype: str | None = None
    value_dim: int | None = None
    is_latent: bool = False

    @cached_property
    def kind(self) -> str:
        if self.is_latent:
            return "attention latent"
        alone = self.queries == 1 < self.keys
        return "attention decode" if alone else "attention prefill"

    @cached_property
    def pairs(self) -> float:
        """Query-key pairs of one head of one sequence; a causal query sees no later key."""
        if not self.causal:
            return float(self.queries * self.keys)
        seen = min(self.queries, self.keys)
        return self.queries * self.keys - seen * (seen - 1) / 2

    @cached_property
    def flops(self) -> float:
        return 2.0 * self.batch * self.heads * self._widths * self.pairs

    @cached_property
    def exponentials(self) -> float:
        """Scores that softmax takes the exponential of."""
        return self.batch * self.heads * self.pairs

    @cached_property
    def kv_elements(self) -> int:
        """Elements of all keys and values."""
        channels = self.head_dim if self.is_latent else self._widths
        return self.batch * self.keys * self.kv_heads * channels

    @property
    def _widths(self) -> int:
        """Channels of a key and of a value."""
        return self.head_dim + (self.value_dim or self.head_dim)

    @cached_property
    def weight_bytes(self) -> float:
        """Keys and values: what is read from a cache."""
        return self.kv_elements * BITS[arithmetic(self.kv_dtype or self.dtype)] / 8

    @cached_property
    def bytes(self) -> float:
        bits = BITS[arithmetic(self.dtype)]
        return self.weight_bytes + self.batch * self.queries * self.heads * self._widths * bits / 8

    @cached_property
    def place(self) -> Coordinates:
        return (
            math.log2(self.batch),
            math.log2(self.keys),
            math.log2(self.keys / self.queries) if self.queries > 1 else 0.0,
            math.log2(self.heads),
            math.log2(self.heads / self.kv_heads),
            math.log2(BITS[arithmetic(self.kv_dtype or self.dtype)]),
            math.log2(self.head_dim),
        )


@dataclass(frozen=True)
class Stream:
    """A kernel that memory bounds: bytes read and written, in `rows` that are worked on alone."""

    of: StreamKind
    bytes: float
    rows: int = 1
    flops: ClassVar[float] = 0.0
    weight_bytes: ClassVar[float] = 0.0

    @cached_property
    def kind(self) -> str:
        return f"stream {self.of}"

    @cached_property
    def place(self) -> Coordinates:
        return (math.log2(max(self.bytes, 1)), math.log2(max(self.bytes, 1) / self.rows))


@dataclass(frozen=True)
class Collective:
    """An exchange of `message` bytes on each of `ranks` devices; `library` says whose kernel.

    A message is what a rank hands in to reduce, or holds when all have gathered or exchanged.
    `span` counts the neighbouring devices that the group reaches over, itself if None: ranks that
    train on different sequences lie as many devices apart as share a model.
    """

    of: CollectiveKind
    message: float
    ranks: int
    library: Literal["nccl", "engine"] = "nccl"
    span: int | None = None
    flops: ClassVar[float] = 0.0
    weight_bytes: ClassVar[float] = 0.0

    @cached_property
    def kind(self) -> str:
        return f"collective {self.of} {self.library}"

    @property
    def joined(self) -> int:
        """How many devices a link has to join, for all that are exchanged to go over it."""
        return self.span or self.ranks

    @cached_property
    def bytes(self) -> float:
        """What one rank sends: a ring passes each share on, twice to reduce and hand out."""
        turns = 2 if self.of == "all_reduce" else 1
        return turns * (self.ranks - 1) / self.ranks * self.message

    @cached_property
    def place(self) -> Coordinates:
        return (math.log2(max(self.message, 1)), math.log2(self.ranks))


KernelShape = Matmul | Attention | Stream | Collective
