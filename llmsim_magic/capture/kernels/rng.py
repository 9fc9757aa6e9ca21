"""Random numbers for a pass, drawn from a generator of its own: nobody else's is moved."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from llmsim_magic.capture.kernels.kernel_facts import facts


class PrivateRng:
    """Throws for the kernels that draw; the same numbers each time."""

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None

    def run(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """What a kernel makes on the host, its random numbers our own."""
        known = facts(func)
        if not known.draws:
            return func(*args, **keywords)
        if known.with_generator is None:
            with torch.random.fork_rng(devices=[]):
                return func(*args, **keywords)
        if self._generator is None:
            self._generator = torch.Generator()
        return known.with_generator(*args, **{**keywords, "generator": self._generator})


@contextmanager
def seeded_rng() -> Iterator[None]:
    """Leave the random generators of the process as they were.

    Those of Python and numpy are put back where they moved. Torch's is only where it was seeded:
    no pass draws from it, so that another thread may, and must not be given its numbers again.
    """
    python, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        if not _same(np.random.get_state(), numpys):
            np.random.set_state(numpys)
        if _is_fresh(torch.get_rng_state(), torchs):
            torch.set_rng_state(torchs)


def _same(now: Any, then: Any) -> bool:
    """Whether two states of numpy's generator are one, without comparing all its words if not."""
    return bool(now[2:] == then[2:] and np.array_equal(now[1], then[1]))


def _is_fresh(now: torch.Tensor, then: torch.Tensor) -> bool:
    """Whether a generator was seeded meanwhile."""
    if torch.equal(now, then):
        return False
    return torch.equal(now, torch.Generator().manual_seed(torch.initial_seed()).get_state())
