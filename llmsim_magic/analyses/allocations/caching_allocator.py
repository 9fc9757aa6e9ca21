"""PyTorch's caching allocator: the blocks it gives, and the segments it reserves for them.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` with its default settings. A block
is given again to the stream that it was allocated on alone.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

_MIN_BLOCK = 512
_SMALL_SIZE = 2**20  # the largest request of the small pool
_SMALL_SEGMENT = 2 * 2**20
_MIN_LARGE_SEGMENT = 10 * 2**20  # requests from here on get a segment of their own
_LARGE_SEGMENT = 20 * 2**20
_SEGMENT_MULTIPLE = 2 * 2**20


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment; `before` and `after` are its neighbours there."""

    address: int
    nbytes: int
    is_small: bool
    stream: int
    is_free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None


# Free blocks of a pool by size and then address, which is the order of the search for a best fit.
_Pool = list[tuple[int, int]]


@dataclass(slots=True)
class CachingAllocator:
    """Blocks of one device. `allocated` and `reserved` are bytes now.

    `allocated` counts whole blocks, as `torch.cuda.memory_allocated` does: requests are rounded to
    512 bytes, and a free block of the large pool is not split for a request that leaves 1 MiB or
    less of it. `reserved` counts segments, which are kept when their blocks are freed.
    """

    allocated: int = 0
    reserved: int = 0
    _pools: dict[int, tuple[_Pool, _Pool]] = field(default_factory=lambda: {0: ([], [])})
    _free: dict[int, Block] = field(default_factory=dict)  # free blocks by address

    def allocate(self, nbytes: int, stream: int = 0) -> Block | None:
        """A block for a request: the smallest free one of a stream, or one of a new segment.

        Returns:
            The block, or None for a request of no bytes.
        """
        if nbytes <= 0:
            return None
        nbytes = -(-nbytes // _MIN_BLOCK) * _MIN_BLOCK
        is_small = nbytes <= _SMALL_SIZE
        pool = self._pools.setdefault(stream, ([], []))[is_small]
        place = bisect_left(pool, (nbytes, 0))
        block = (
            self._free.pop(pool.pop(place)[1])
            if place < len(pool)
            else self._new_segment(nbytes, stream)
        )
        block.is_free = False
        rest = block.nbytes - nbytes
        if rest >= _MIN_BLOCK if is_small else rest > _SMALL_SIZE:
            self._split(block, nbytes)
        self.allocated += block.nbytes
        return block

    def free(self, block: Block) -> None:
        """Keep a block for later requests, merged with the free blocks beside it."""
        self.allocated -= block.nbytes
        before, after = block.before, block.after
        if before is not None and before.is_free:
            self._remove(before)
            before.nbytes += block.nbytes
            _link(before, after)
            block = before
        if after is not None and after.is_free:
            self._remove(after)
            block.nbytes += after.nbytes
            _link(block, after.after)
        self._add(block)

    def _new_segment(self, nbytes: int, stream: int) -> Block:
        is_small = nbytes <= _SMALL_SIZE
        if is_small:
            size = _SMALL_SEGMENT
        elif nbytes < _MIN_LARGE_SEGMENT:
            size = _LARGE_SEGMENT
        else:
            size = -(-nbytes // _SEGMENT_MULTIPLE) * _SEGMENT_MULTIPLE
        block = Block(self.reserved, size, is_small, stream)
        self.reserved += size
        return block

    def _split(self, block: Block, nbytes: int) -> None:
        """Shorten a block, and keep what is left of it as a free block."""
        rest = Block(block.address + nbytes, block.nbytes - nbytes, block.is_small, block.stream)
        block.nbytes = nbytes
        _link(rest, block.after)
        _link(block, rest)
        self._add(rest)

    def _add(self, block: Block) -> None:
        block.is_free = True
        self._free[block.address] = block
        insort(self._pools[block.stream][block.is_small], (block.nbytes, block.address))

    def _remove(self, block: Block) -> None:
        del self._free[block.address]
        pool = self._pools[block.stream][block.is_small]
        del pool[bisect_left(pool, (block.nbytes, block.address))]


def _link(block: Block, after: Block | None) -> None:
    block.after = after
    if after is not None:
        after.before = block
