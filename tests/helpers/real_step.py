"""What real training steps allocate on a CPU, in blocks of the simulated allocator."""

from typing import Any

import torch

from tests.helpers.allocation_peak import Blocks


class StepBlocks(Blocks):
    """As `Blocks`; counts the weights, and notes the bytes of each pass.

    Args:
        weights: Bytes of each parameter and buffer.
        batch: The inputs of every step.
    """

    def __init__(self, weights: list[int], batch: list[torch.Tensor]) -> None:
        super().__init__(weights, (), batch)
        self._before = 0
        self.peak = self.now

    @property
    def now(self) -> int:
        return self._allocator.allocated

    def passed(self) -> tuple[int, int]:
        """The most bytes since the last call, and those of now."""
        most, self.peak = max(self.peak, self.now), self.now
        return most, self.now


def real_steps(
    model: Any,
    keywords: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    micro_batches: int = 1,
) -> list[dict[str, tuple[int, int]]]:
    """Train a model on the CPU for two steps.

    Args:
        model: The model, in training mode.
        keywords: Arguments of its forward, labels among them.
        optimizer: The optimizer of its parameters.
        micro_batches: How often forward and backward run in each step.

    Returns:
        For each step the most bytes in each pass, and the bytes after it; forward and backward are
        those of the last micro-batch.
    """
    weights = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers())}
    seen = StepBlocks(list(weights.values()), list(keywords.values()))
    found = []
    with seen:
        for _ in range(2):
            stages = {}
            for _ in range(micro_batches):
                loss = model(**keywords).loss
                stages["forward"] = seen.passed()
                loss.backward()
                del loss
                stages["backward"] = seen.passed()
            optimizer.step()
            stages["optimizer"] = seen.passed()
            optimizer.zero_grad()
            seen.passed()
            found.append(stages)
    return found
