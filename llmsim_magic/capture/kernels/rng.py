"""Random numbers of a traced pass, drawn without advancing the generators of the process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from llmsim_magic.capture.kernels.kernel_facts import facts


class PrivateRng:
    """Runs random kernels with a private generator, seeded the same each time.

    Attributes:
        draws: How many random kernels ran on the host.
    """

    def __init__(self) -> None:
        self.draws = 0
        self._generator: torch.Generator | None = None

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a kernel on the host; if it is random, with the private generator.

        Args:
            func: The `OpOverload` to call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The kernel's result.
        """
        kernel = facts(func)
        if not kernel.is_random:
            return func(*args, **kwargs)
        self.draws += 1
        if kernel.generator_overload is None:
            with torch.random.fork_rng(devices=[]):
                return func(*args, **kwargs)
        if self._generator is None:
            self._generator = torch.Generator()
        return kernel.generator_overload(*args, **{**kwargs, "generator": self._generator})


def generator_states() -> tuple[object, ...]:
    """The states of the random generators of Python and numpy; equal unless numbers were drawn."""
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch on exit.

    Torch's generator is restored only if it was reseeded. A traced pass never draws from it, so
    if it has advanced, another thread drew, and must not get the same numbers again.
    """
    python, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        if not _is_same_numpy_state(np.random.get_state(), numpys):
            np.random.set_state(numpys)
        if _was_reseeded(torch.get_rng_state(), torchs):
            torch.set_rng_state(torchs)


def _is_same_numpy_state(now: Any, before: Any) -> bool:
    """Whether two states of numpy's generator are equal; the cheap fields are compared first."""
    return bool(now[2:] == before[2:] and np.array_equal(now[1], before[1]))


def _was_reseeded(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether torch's generator was seeded since the earlier state."""
    if torch.equal(now, before):
        return False
    return torch.equal(now, torch.Generator().manual_seed(torch.initial_seed()).get_state())
