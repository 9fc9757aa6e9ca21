"""Experts spread over ranks that share a batch: each runs its own on the tokens routed to them."""

from typing import Any

import torch
from torch.nn.functional import pad

from llmsim_magic.capture.kernels.collectives import all_reduce
from llmsim_magic.records.errors import CannotTrace


class BalancedRouting:
    """Hands a rank's experts their even share of tokens, and sums the results of all ranks.

    Of `tokens · chosen` pairs of token and expert a rank has `1 / ranks`. The results of the
    others are zeros in the sum, so that it is as large as all tokens.
    """

    def __init__(self, ranks: int, experts: int) -> None:
        """A rank has so many `experts`."""
        self._ranks = ranks
        self._experts = experts
        self._tokens = 0

    def hook(self, experts: torch.nn.Module) -> None:
        experts.register_forward_pre_hook(self._given, prepend=True, with_kwargs=True)
        experts.register_forward_hook(self._made)

    def _given(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """`hidden [tokens, width], indices [tokens, chosen], weights [tokens, chosen]`, cut."""
        names, values = tuple(kwargs), (*args, *kwargs.values())
        if [getattr(value, "ndim", 0) for value in values] != [2, 2, 2]:
            raise CannotTrace(f"ep: {type(module).__name__} is not given tokens and their experts")
        hidden, *routing = values
        self._tokens, chosen = routing[0].shape
        pairs = -(-self._tokens * chosen // self._ranks)
        tokens = min(pairs, self._tokens)
        each = -(-pairs // tokens)
        indices, weights = (value[:tokens, :each] for value in routing)
        cut = (hidden[:tokens], indices % self._experts, weights)
        return cut[: len(args)], dict(zip(names, cut[len(args) :], strict=True))

    def _made(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        missing = self._tokens - output.shape[0]
        return all_reduce(pad(output, (0, 0, 0, missing)) if missing else output)
