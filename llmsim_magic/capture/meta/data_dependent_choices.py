"""Results of kernels that choose or order elements by unknown values: top-k, argmax, sort."""

import math
from typing import Any

import torch

from llmsim_magic.capture.meta.partial_evaluation import PartialEvaluation
from llmsim_magic.records.trace.assumptions import BALANCED_CHOICE

META = torch.device("meta")


def topk(
    evaluation: PartialEvaluation,
    scores: torch.Tensor,
    k: int,
    dim: int = -1,
    *rest: Any,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk` of unknown scores, such as the routing of tokens to experts."""
    if k > (scores.shape[dim] if scores.dim() else 1):
        raise RuntimeError(f"selected index k out of range: {k} of {tuple(scores.shape)}")
    indices = _balanced_choices(evaluation, scores, k, dim)
    return scores.new_empty(indices.shape, device=META), indices


def argmax(
    evaluation: PartialEvaluation,
    scores: torch.Tensor,
    dim: int | None = None,
    keepdim: bool = False,
) -> torch.Tensor:
    """`argmax` or `argmin` of unknown scores."""
    if dim is None or not scores.dim():
        index = _balanced_choices(evaluation, scores.flatten(), 1, 0).squeeze(0)
        return index.view((1,) * scores.dim()) if keepdim else index
    indices = _balanced_choices(evaluation, scores, 1, dim)
    return indices if keepdim else indices.squeeze(dim)


def max_along(
    evaluation: PartialEvaluation, scores: torch.Tensor, dim: int, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`max` or `min` of unknown scores along a dimension, with indices."""
    indices = argmax(evaluation, scores, dim, keepdim)
    return scores.new_empty(indices.shape, device=META), indices


def sort(
    evaluation: PartialEvaluation, scores: torch.Tensor, dim: int = -1, *rest: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sort` of unknown scores: they are assumed to be sorted already."""
    evaluation.assume("values whose order depends on the data are assumed to be sorted already")
    values = torch.empty_like(scores, device=META)
    if not evaluation.is_holdable(scores.numel()) or not scores.dim():
        return values, torch.empty_like(scores, dtype=torch.long, device=META)
    indices = torch.arange(scores.shape[dim])
    return values, indices.expand(scores.movedim(dim, -1).shape).movedim(-1, dim).contiguous()


def sort_stable(
    evaluation: PartialEvaluation, scores: torch.Tensor, *, dim: int = -1, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sort(stable=True)` of unknown scores."""
    return sort(evaluation, scores, dim)


def multinomial(
    evaluation: PartialEvaluation,
    probabilities: torch.Tensor,
    count: int,
    *rest: Any,
    **options: Any,
) -> torch.Tensor:
    """A random draw with unknown probabilities."""
    return _balanced_choices(evaluation, probabilities, count, -1)


def _balanced_choices(
    evaluation: PartialEvaluation, scores: torch.Tensor, count: int, dim: int
) -> torch.Tensor:
    """Indices of `count` choices along a dimension, each index chosen equally often."""
    evaluation.assume(BALANCED_CHOICE)
    shape = list(scores.shape) or [1]
    options = shape.pop(dim)
    chosen = _round_robin(evaluation, math.prod(shape), count, options).view(*shape, count)
    return chosen.movedim(-1, dim)


def _round_robin(
    evaluation: PartialEvaluation, rows: int, count: int, options: int
) -> torch.Tensor:
    """Indices `[rows, count]` below `options` in turn; on `meta` if they are too many to hold."""
    if not evaluation.is_holdable(rows * count):
        return torch.empty((rows, count), dtype=torch.long, device=META)
    return torch.arange(rows * count).remainder_(max(options, 1)).view(rows, count)
