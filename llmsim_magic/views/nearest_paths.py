"""The paths of modules nearest to one that does not exist, compared from their ends."""

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import cache

_LONGEST = 40  # characters of a part, and parts, that are compared
_ALIKE = 0.6  # a mean similarity that is worth a suggestion
_PREFIX = 0.95  # the similarity of `up` and `up_proj`


def nearest_paths(path: str, paths: Iterable[str], count: int = 3) -> list[str]:
    """The paths most like a given one, best first; the first of all where none is alike.

    The last parts count most, so that `mlp.up` and `layers.0.mlp.up` both find
    `model.layers.0.mlp.up_proj`. Of paths that differ by a number alone, only the best is listed.

    Args:
        path: a path that no module has.
        paths: the paths of the modules.
        count: how many paths to return at most.
    """
    every = list(paths)
    given = [part[:_LONGEST] for part in re.split(r"[.…/]+", path) if part][-_LONGEST:]
    similarity = cache(_similarity)
    scores = {each: _score(given, each.split("."), similarity) for each in every}
    ranked = sorted(every, key=lambda each: -scores[each])
    kinds: dict[str, str] = {}
    for each in ranked:
        if scores[each] >= _ALIKE:
            kinds.setdefault(re.sub(r"\d+", "N", each), each)
    return (list(kinds.values()) or every)[:count]


def _score(given: list[str], parts: list[str], similarity: Callable[[str, str], float]) -> float:
    """The mean similarity of the parts from the end; each weighs half of the one after it."""
    total = weights = 0.0
    weight = 1.0
    for place, part in enumerate(reversed(given), 1):
        if place <= len(parts):
            total += weight * similarity(part.lower(), parts[-place].lower())
        weights += weight
        weight /= 2
    return total / weights if weights else 0.0


def _similarity(given: str, part: str) -> float:
    """From 0 to 1; a beginning of the part is nearly the part itself."""
    if given == part:
        return 1.0
    if part.startswith(given):
        return _PREFIX
    return SequenceMatcher(None, given, part).ratio()
