"""Expert parallelism: each rank runs its experts on the tokens routed to them."""

from typing import Any

import torch
from torch.nn.functional import pad

from llmsim_magic.capture.kernels.collectives import all_reduce
from llmsim_magic.records.errors import CannotTrace


class BalancedRouting:
    """Hooks that route an equal share of the tokens to each rank and all-reduce the results.

    A rank computes `tokens · top_k / ranks` pairs of token and expert; its output is zero for all
    other tokens.
    """

    def __init__(self, ranks: int, experts: int) -> None:
        """`experts` is the number of experts on each rank."""
        self._ranks = ranks
        self._experts = experts
        self._tokens = 0

    def hook(self, experts: torch.nn.Module) -> None:
        """Register the hooks on the module that holds a rank's experts."""
        experts.register_forward_pre_hook(self._route, prepend=True, with_kwargs=True)
        experts.register_forward_hook(self._reduce)

    def _route(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Cut `hidden [tokens, width]`, `indices` and `weights`, both `[tokens, top_k]`."""
        names, values = tuple(kwargs), (*args, *kwargs.values())
        if [getattr(value, "ndim", 0) for value in values] != [2, 2, 2]:
            raise CannotTrace(
                f"ep does not support {type(module).__name__}: its forward must take "
                "hidden states, expert indices and expert weights"
            )
        hidden, *routing = values
        self._tokens, top_k = routing[0].shape
        pairs = -(-self._tokens * top_k // self._ranks)
        tokens = min(pairs, self._tokens)
        experts_per_token = -(-pairs // tokens)
        indices, weights = (value[:tokens, :experts_per_token] for value in routing)
        cut = (hidden[:tokens], indices % self._experts, weights)
        return cut[: len(args)], dict(zip(names, cut[len(args) :], strict=True))

    def _reduce(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        missing = self._tokens - output.shape[0]
        return all_reduce(pad(output, (0, 0, 0, missing)) if missing else output)
