"""Divide the workloads of a phase into regions, each with formulas of its own."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from llmsim_magic.analyses.formulas.fit_region import Reading, extended, fit_region
from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.formulas.symbolic_trace import Region

Readings = Mapping[Point, Reading]

MIN_CONTEXTS = 4  # of a region with several contexts: three determine a parabola, one checks it
FEW_TOKENS = 2**18  # a model may treat more tokens, or a larger batch, in another way
_FEW_SEQUENCES = 16


def fit_regions(readings: Readings) -> tuple[Region, ...]:
    """The regions of one phase.

    A batch or a context of 1 changes strides and contiguity, so such workloads are held against the
    formulas of larger ones, and have their own where those do not hold.

    Args:
        readings: traces of one model and phase by (batch, context).
    """
    found: list[Region] = []
    for points in _classes(readings):
        _add(found, readings, points)
    return tuple(found)


def boundaries(regions: Iterable[Region], readings: Readings) -> Iterator[tuple[int, int, int]]:
    """Neighbouring contexts, traced with the same batch, that no region has both of.

    Yields:
        The batch and the two contexts; the model may change what it does between them.
    """
    known = tuple(regions)
    for points in _classes(readings):
        by_batch: dict[int, list[int]] = {}
        for batch, context in points:
            by_batch.setdefault(batch, []).append(context)
        for batch, contexts in by_batch.items():
            for near, far in pairwise(contexts):
                shared = (r for r in known if r.contains(batch, near) and r.contains(batch, far))
                if next(shared, None) is None:
                    yield batch, near, far


def _classes(readings: Readings) -> Iterator[list[Point]]:
    """The points of larger batches and contexts, of batch 1, and of context 1, sorted."""
    points = sorted(readings, key=lambda point: (point[1], point[0]))
    yield [point for point in points if min(point) > 1]
    yield [point for point in points if point[0] == 1 < point[1]]
    yield [point for point in points if point[1] == 1 < point[0]]


def _add(found: list[Region], readings: Readings, points: list[Point]) -> None:
    """Add regions for these points, from the shortest context to the longest."""
    rest = points
    while rest:
        rest = _after_known_region(found, readings, rest)
        if not rest:
            return
        covered = _longest_region(readings, rest)
        if covered is None:
            shortest = rest[0][1]
            rest = [point for point in rest if point[1] > shortest]
            continue
        region, longest = covered
        found.append(region)
        rest = [point for point in rest if point[1] > longest]


def _after_known_region(
    found: list[Region], readings: Readings, points: list[Point]
) -> list[Point]:
    """Extend a region by the points at which it holds too; return the points after these.

    It must hold at several contexts, or at all; points of their own are better than a few.
    """
    for index, region in enumerate(found):
        held: list[Point] = []
        for context, group in _by_context(points):
            if not all(region.evaluate(*point) == readings[point].trace for point in group):
                break
            held += group
            longest = context
        if len(_contexts(held)) >= MIN_CONTEXTS or (held and len(held) == len(points)):
            found[index] = extended(region, held)
            return [point for point in points if point[1] > longest]
    return points


def _longest_region(readings: Readings, points: list[Point]) -> tuple[Region, int] | None:
    """The region from the shortest of these contexts to the longest that it holds at."""
    contexts = _contexts(points)
    least = MIN_CONTEXTS if contexts[-1] > 1 else 1
    for count in range(len(contexts), least - 1, -1):
        longest = contexts[count - 1]
        within = [point for point in points if point[1] <= longest]
        few = [(batch, context) for batch, context in within if batch * context <= FEW_TOKENS]
        fewest = [point for point in few if point[0] <= _FEW_SEQUENCES]
        for some in {len(each): each for each in (within, few, fewest) if each}.values():
            region = fit_region({point: readings[point] for point in some})
            if region is not None:
                return region, longest
    return None


def _by_context(points: list[Point]) -> Iterator[tuple[int, list[Point]]]:
    for context in _contexts(points):
        yield context, [point for point in points if point[1] == context]


def _contexts(points: Iterable[Point]) -> list[int]:
    return sorted({context for _, context in points})
