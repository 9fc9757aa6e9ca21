"""The peak of bytes that a real forward pass allocates, by watching every storage."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmsim_magic.capture.kernels.tensors import tensors_in


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
