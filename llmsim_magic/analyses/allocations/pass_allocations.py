"""What a plain call of the model allocates during a pass, in blocks of PyTorch's allocator."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from llmsim_magic.analyses.allocations.caching_allocator import Block, CachingAllocator
from llmsim_magic.analyses.allocations.tensor_lifetimes import Lifetime, Peak, lifetimes
from llmsim_magic.analyses.kernels.memoize import memoize
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace


@dataclass(frozen=True, slots=True)
class PassAllocations:
    """Bytes of a pass beside weights and buffers, in whole blocks.

    Attributes:
        above: The most that is allocated above what was allocated before the pass, by a caller who
            keeps the cache that the pass replaces, and the operator that runs then. A cache that
            the pass updates in place counts too.
        allocated: The most that is allocated when nobody keeps the replaced cache: a layer's old
            keys are freed once `torch.cat` has written the new ones.
        cache: Storages of the cache after the pass, as far as kernels use them.
        segments: What all segments after the pass, in a new process, exceed weights and buffers by.
    """

    above: Peak
    allocated: int
    cache: int
    segments: int


@memoize
def pass_allocations(trace: Trace) -> PassAllocations:
    """The allocations of a pass, replayed on the caching allocator of one device."""
    record = trace.unrolled
    made = lifetimes(record, ("activation", "cache"))
    replaced, updated = _earlier_cache(record, made)
    kept = _Replay(trace, updated, replaced)
    kept.run(record, made)
    freed = kept
    if replaced:
        freed = _Replay(trace, (*updated, *replaced), ())
        freed.run(record, made, _last_uses(record, replaced))
    return PassAllocations(
        above=kept.peak(record),
        allocated=freed.most,
        cache=sum(
            storage.nbytes
            for number, storage in enumerate(record.storages)
            if storage.role == "cache" and number not in replaced
        ),
        segments=freed.allocator.reserved - freed.loaded,
    )


class _Replay:
    """Allocations of one pass.

    Args:
        trace: The pass, whose weights and buffers are allocated first.
        counted: Storages of the cache that exist before the pass and count to it.
        uncounted: Storages of the cache that exist before the pass and that its caller keeps.
    """

    def __init__(self, trace: Trace, counted: Iterable[int], uncounted: Iterable[int]) -> None:
        self.allocator = CachingAllocator()
        self.loaded = 0
        self._blocks: dict[int, Block | None] = {}
        for parameter in trace.parameters:
            if parameter.tied_to is None:
                self.allocator.allocate(parameter.nbytes)
                self.loaded += parameter.nbytes
        storages = trace.unrolled.storages
        for storage in uncounted:
            self._blocks[storage] = self.allocator.allocate(storages[storage].nbytes)
        self._before = self.allocator.allocated
        for storage in counted:
            self._blocks[storage] = self.allocator.allocate(storages[storage].nbytes)
        self.most, self._place = self.allocator.allocated - self._before, 0

    def run(
        self, record: Record, made: Iterable[Lifetime], last_uses: dict[int, int] | None = None
    ) -> None:
        """Allocate each storage at its first kernel, and free it after its last.

        Args:
            record: The pass.
            made: The storages that it allocates.
            last_uses: Storages that existed before, each with the kernel after which it is freed.
        """
        first: dict[int, list[Lifetime]] = defaultdict(list)
        last: dict[int, list[int]] = defaultdict(list)
        for life in made:
            first[life.first].append(life)
            last[life.last].append(life.storage)
        for storage, place in (last_uses or {}).items():
            last[place].append(storage)
        for place in range(len(record.kernels)):
            for life in first[place]:
                self._blocks[life.storage] = self.allocator.allocate(life.nbytes)
            if self.allocator.allocated - self._before > self.most:
                self.most, self._place = self.allocator.allocated - self._before, place
            for storage in last[place]:
                block = self._blocks.pop(storage)
                if block is not None:
                    self.allocator.free(block)

    def peak(self, record: Record) -> Peak:
        kernels = record.kernels
        return Peak(self.most, kernels[self._place].operator if kernels else None)


def _earlier_cache(
    record: Record, made: Iterable[Lifetime]
) -> tuple[dict[int, int], tuple[int, ...]]:
    """Storages of the cache from before the pass: those that others replace, and those it keeps.

    A new storage of the cache replaces the earlier one of the same name.

    Returns:
        The replaced storages with their replacements, and the kept ones.
    """
    new = {life.storage for life in made}
    caches = {
        number: storage.name
        for number, storage in enumerate(record.storages)
        if storage.role == "cache"
    }
    successors = {name: number for number, name in caches.items() if number in new}
    earlier = [number for number in caches if number not in new]
    return (
        {each: successors[caches[each]] for each in earlier if caches[each] in successors},
        tuple(each for each in earlier if caches[each] not in successors),
    )


def _last_uses(record: Record, replaced: dict[int, int]) -> dict[int, int]:
    """The kernel after which the cache drops each replaced storage.

    The cache refers to it until it is given the new tensor: what `torch.cat` returns, or what the
    same operator cuts out of that for a sliding window.
    """
    last: dict[int, int] = {}
    reader: dict[int, int | None] = {}  # the operator of the last kernel that reads a storage
    old = {new: each for each, new in replaced.items()}
    for place, kernel in enumerate(record.kernels):
        for index in (*kernel.inputs, *kernel.writes):
            storage = record.tensors[index].storage
            if storage in replaced:
                last[storage], reader[storage] = place, kernel.operator
        for index in kernel.outputs:
            each = old.get(record.tensors[index].storage)
            if each in reader and reader[each] == kernel.operator is not None:
                last[each] = place
    return last
