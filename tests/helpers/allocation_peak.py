"""The peak of bytes that a real forward pass allocates, by watching every storage."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.analyses.allocations.caching_allocator import Block, CachingAllocator
from llmsim_magic.capture.kernels.tensors import held_tensors, tensors_in
from tests.helpers.cache_names import NAMES


class Allocations(TorchDispatchMode):
    """While open, adds up the storages that kernels make; `peak` is the most at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors_in((args, kwargs)):
            self._meet(tensor.untyped_storage(), is_new=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._meet(tensor.untyped_storage(), is_new=True)
        return out

    def _meet(self, storage: torch.UntypedStorage, *, is_new: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        nbytes = storage.nbytes() if is_new else 0
        self.alive += nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, nbytes)

    def _free(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.alive -= nbytes


def peak(model: Any, keywords: dict[str, Any]) -> int:
    """The most bytes that one forward pass holds beyond its weights and inputs."""
    with torch.no_grad(), Allocations() as seen:
        output = model(**keywords)
    del output
    return seen.peak


class Blocks(Allocations):
    """As `Allocations`, with a block of PyTorch's CUDA allocator for each storage.

    `peak` is the most in blocks above what the weights and the kept tensors take.

    Args:
        weights: Bytes of each parameter and buffer.
        kept: Tensors from before the pass that its caller keeps.
        passed: Tensors from before the pass that only the pass refers to; they count.
    """

    def __init__(
        self, weights: Iterable[int], kept: Iterable[torch.Tensor], passed: Iterable[torch.Tensor]
    ) -> None:
        super().__init__()
        self._allocator = CachingAllocator()
        for nbytes in weights:
            self._allocator.allocate(nbytes)
        for tensor in kept:
            self._allocator.allocate(tensor.untyped_storage().nbytes())
        self._before = self._allocator.allocated
        for tensor in passed:
            self._meet(tensor.untyped_storage(), is_new=True)

    def _meet(self, storage: torch.UntypedStorage, *, is_new: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        block = self._allocator.allocate(storage.nbytes()) if is_new else None
        self.peak = max(self.peak, self._allocator.allocated - self._before)
        weakref.finalize(storage, self._release, key, block)

    def _release(self, key: int, block: Block | None) -> None:
        self._known.discard(key)
        if block is not None:
            self._allocator.free(block)


def block_peak(model: Any, keywords: dict[str, Any], *, keeps_cache: bool) -> int:
    """The most bytes in blocks that one forward pass takes above what was allocated before.

    Args:
        model: A model on the CPU.
        keywords: Arguments of its forward.
        keeps_cache: Whether the caller keeps the tensors of the cache; if not, they count.
    """
    cache = [
        tensor
        for name, value in keywords.items()
        if name in NAMES
        for _, tensor in held_tensors(name, value)
    ]
    weights = [tensor.nbytes for tensor in (*model.parameters(), *model.buffers())]
    seen = Blocks(weights, cache if keeps_cache else (), () if keeps_cache else cache)
    if not keeps_cache:
        cache.clear()
    with torch.no_grad(), seen:
        output = model(**keywords)
    del output
    return seen.peak
