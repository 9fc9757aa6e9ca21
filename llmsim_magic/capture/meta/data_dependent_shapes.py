"""Results of kernels whose output shape depends on unknown values: masks, `unique`, counts."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from llmsim_magic.capture.meta.partial_evaluation import CannotEvaluate, PartialEvaluation

aten = torch.ops.aten
META = torch.device("meta")
_MASK = "a mask that depends on the data is assumed to select everything"
_DISTINCT = "values that depend on the data are assumed to be all different"


def nonzero(evaluation: PartialEvaluation, mask: torch.Tensor) -> torch.Tensor:
    """`nonzero` of an unknown mask, `[elements, dimensions]`."""
    evaluation.assume(_MASK)
    if not evaluation.is_holdable(mask.numel()):
        return torch.empty((mask.numel(), mask.dim()), dtype=torch.long, device=META)
    return torch.ones(mask.shape, dtype=torch.bool).nonzero()


def masked_select(
    evaluation: PartialEvaluation, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """`masked_select`: a known mask gives the number of values, an unknown one selects all."""
    shape = torch.broadcast_shapes(values.shape, mask.shape)
    if evaluation.is_known(mask):
        return values.new_empty(int(mask.expand(shape).sum()), device=META)
    evaluation.assume(_MASK)
    return values.new_empty(math.prod(shape), device=META)


def index(
    evaluation: PartialEvaluation, values: torch.Tensor, indices: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Indexing with masks or indices."""
    return aten.index.Tensor(values.to(META), _without_masks(evaluation, indices))


def index_put(
    evaluation: PartialEvaluation,
    values: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    written: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    """Writing to elements selected by masks or indices."""
    return aten.index_put.default(
        values.to(META), _without_masks(evaluation, indices), written.to(META), accumulate
    )


def index_put_in_place(
    evaluation: PartialEvaluation,
    values: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    written: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    """Writing in place to elements selected by masks or indices."""
    evaluation.mark_overwritten(values)
    return values


def _without_masks(
    evaluation: PartialEvaluation, indices: Sequence[torch.Tensor | None]
) -> list[Any]:
    """Indices on `meta`, with each mask replaced by one index tensor per dimension."""
    found: list[torch.Tensor | None] = []
    for each in indices:
        if each is None or each.dtype not in (torch.bool, torch.uint8):
            found.append(each if each is None else each.to(META))
            continue
        if evaluation.is_known(each):
            count = int(each.count_nonzero())
        else:
            evaluation.assume(_MASK)
            count = each.numel()
        found += [torch.empty(count, dtype=torch.long, device=META) for _ in each.shape]
    return found


def unique(
    evaluation: PartialEvaluation, values: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, ...]:
    """`unique` of unknown values, with inverse indices and counts."""
    evaluation.assume(_DISTINCT)
    count = values.numel()
    indices = torch.empty(count, dtype=torch.long, device=META)
    return values.new_empty(count, device=META), indices.view(values.shape), indices


def unique_along(
    evaluation: PartialEvaluation, values: torch.Tensor, dim: int, *rest: Any, **options: Any
) -> tuple[torch.Tensor, ...]:
    """`unique` of unknown values along a dimension, with inverse indices and counts."""
    evaluation.assume(_DISTINCT)
    indices = torch.empty(values.shape[dim], dtype=torch.long, device=META)
    return torch.empty_like(values, device=META), indices, indices


def bincount(
    evaluation: PartialEvaluation, values: torch.Tensor, weights: Any = None, minlength: int = 0
) -> torch.Tensor:
    """`bincount` of unknown values: `minlength` bins, or one for each value."""
    evaluation.assume("a count of values that depend on the data is assumed to have a bin for each")
    dtype = torch.long if weights is None else weights.dtype
    return torch.empty(minlength or values.numel(), dtype=dtype, device=META)


def histogram(
    evaluation: PartialEvaluation, values: torch.Tensor, bins: int = 100, *rest: Any
) -> torch.Tensor:
    """`histc` of unknown values, which has no meta kernel."""
    return values.new_empty(bins, device=META)


def histogram_with_edges(
    evaluation: PartialEvaluation,
    values: torch.Tensor,
    bins: int | torch.Tensor = 100,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`histogram` of unknown values: the bins, and one edge more. The bins may be the edges."""
    edges = bins.numel() if isinstance(bins, torch.Tensor) else bins + 1
    return values.new_empty(edges - 1, device=META), values.new_empty(edges, device=META)


def least_squares(
    evaluation: PartialEvaluation,
    matrix: torch.Tensor,
    right: torch.Tensor,
    rcond: float | None = None,
    *,
    driver: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """`linalg.lstsq` of matrices `[..., m, n]` and right sides `[..., m, k]` or `[..., m]`.

    Returns:
        The solution `[..., n, k]` or `[..., n]`; then residuals `[..., k]`, ranks `[...]` and
        singular values `[..., min(m, n)]`, empty where the driver computes none. Matrices are
        taken to have full rank.
    """
    driver = driver or "gelsy"  # torch's default on the host
    rows, columns = matrix.shape[-2:]
    is_vector = right.dim() == 1 or right.shape == matrix.shape[:-1]
    right = right.unsqueeze(-1) if is_vector else right
    batch = torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    width = right.shape[-1]
    solution = matrix.new_empty(
        (*batch, columns) if is_vector else (*batch, columns, width), device=META
    )
    has_residuals = rows > columns and driver != "gelsy"
    has_values = driver in ("gelsd", "gelss")
    real = matrix.dtype.to_real()
    return (
        solution,
        torch.empty((*batch, width) if has_residuals else (0,), dtype=real, device=META),
        torch.empty((0,) if driver == "gels" else batch, dtype=torch.long, device=META),
        torch.empty((*batch, min(rows, columns)) if has_values else (0,), dtype=real, device=META),
    )


def repeat_interleave(
    evaluation: PartialEvaluation, repeats: torch.Tensor, output_size: int | None = None
) -> torch.Tensor:
    """`repeat_interleave` by unknown counts: one each, unless the call gives the output size."""
    if output_size is None:
        evaluation.assume("a number of repeats that depends on the data is assumed to be 1")
    return torch.empty(output_size or repeats.numel(), dtype=repeats.dtype, device=META)


def pack_padded_sequence(
    evaluation: PartialEvaluation, padded: torch.Tensor, lengths: torch.Tensor, batch_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed data `[sum of lengths, ...]` and the number of samples at each step.

    Args:
        evaluation: The evaluation, which says whether the lengths are known.
        padded: Data `[time, batch, ...]`, or `[batch, time, ...]` with `batch_first`.
        lengths: Length of each sample, in descending order.
        batch_first: Whether the batch is the first dimension.

    Raises:
        CannotEvaluate: The lengths depend on the data.
        RuntimeError: torch's own operator would refuse the lengths.
    """
    if not evaluation.is_known(lengths):
        raise CannotEvaluate(
            "the lengths of pack_padded_sequence depend on the data, so the number of steps is "
            "not known; pass the lengths to the forward as a list or an integer tensor"
        )
    # The values of a single feature suffice: torch checks the lengths and counts the samples.
    one_feature = torch.zeros(padded.shape[:2])
    data, batch_sizes = aten._pack_padded_sequence.default(one_feature, lengths, batch_first)
    return padded.new_empty((len(data), *padded.shape[2:]), device=META), batch_sizes
