"""Aligns two sequences in order at the least cost, and says which of the matches are certain.

S. B. Needleman and C. D. Wunsch, "A general method applicable to the search for similarities in the
amino acid sequence of two proteins", Journal of Molecular Biology 48(3), 1970.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Costs = Sequence[Sequence[float]]
_TINY = 1e-9  # costs that differ by rounding are equal


@dataclass(frozen=True, slots=True)
class Match:
    """Two elements that correspond, by their indices.

    `is_certain` is False if an alignment that costs hardly more has one of them alone or with
    another element.
    """

    first: int
    second: int
    is_certain: bool


def align_sequences(
    costs: Costs, first: Sequence[float], second: Sequence[float], margin: float
) -> list[Match]:
    """The cheapest alignment of two sequences.

    Args:
        costs: what it costs that elements `[i][j]` correspond; infinite if they cannot.
        first: what it costs to leave out each element of the first sequence.
        second: what it costs to insert each element of the second sequence.
        margin: how much more another alignment has to cost for a match to be certain.

    Returns:
        The matches in order. Of alignments that cost the same, the one that matches earlier
        elements.
    """
    before, after = _costs_before(costs, first, second), _costs_after(costs, first, second)
    limit = after[0][0] + margin + _TINY
    matches: list[Match] = []
    i = j = 0
    while i < len(first) and j < len(second):
        if after[i][j] >= costs[i][j] + after[i + 1][j + 1] - _TINY:
            alone = [before[i][k] + first[i] + after[i + 1][k] for k in range(len(second) + 1)]
            alone += [before[k][j] + second[j] + after[k][j + 1] for k in range(len(first) + 1)]
            with_others = [
                before[a][b] + costs[a][b] + after[a + 1][b + 1]
                for a, b in (
                    *((i, k) for k in range(len(second)) if k != j),
                    *((k, j) for k in range(len(first)) if k != i),
                )
            ]
            matches.append(Match(i, j, min(*alone, *with_others) > limit))
            i, j = i + 1, j + 1
        elif after[i][j] >= first[i] + after[i + 1][j] - _TINY:
            i += 1
        else:
            j += 1
    return matches


def _costs_after(
    costs: Costs, first: Sequence[float], second: Sequence[float]
) -> list[list[float]]:
    """The least cost of aligning what is left from each pair of places on."""
    found = [[0.0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in range(len(first), -1, -1):
        for j in range(len(second), -1, -1):
            options = []
            if i < len(first):
                options.append(first[i] + found[i + 1][j])
            if j < len(second):
                options.append(second[j] + found[i][j + 1])
            if i < len(first) and j < len(second):
                options.append(costs[i][j] + found[i + 1][j + 1])
            found[i][j] = min(options, default=0.0)
    return found


def _costs_before(
    costs: Costs, first: Sequence[float], second: Sequence[float]
) -> list[list[float]]:
    """The least cost of aligning what is before each pair of places."""
    backwards = [row[::-1] for row in costs[::-1]]
    found = _costs_after(backwards, first[::-1], second[::-1])
    return [row[::-1] for row in found[::-1]]
