"""The legal value that a misspelt one probably means."""

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from types import MappingProxyType

_ALIKE = 0.65  # similarity of a value that is suggested
_LONGEST = 80  # characters that are compared, in time quadratic in the length
_WORD = re.compile(r"[^\W\d_]+|\d+[^\W\d_]*")
_NO_NAMES: Mapping[str, str] = MappingProxyType({})


def nearest(given: str, legal: Iterable[str], names: Mapping[str, str] = _NO_NAMES) -> str | None:
    """The legal value most like a given one; None if none is alike.

    Case, separators and the order of words do not matter: `AdamW8bit` and `8bit-adamw` both find
    `adamw_8bit`.

    Args:
        given: an illegal value.
        legal: the legal values.
        names: other names of legal values, which are also compared.

    >>> nearest("adamw8bit", ["adamw", "adamw_8bit"])
    'adamw_8bit'
    """
    spellings = {each: each for each in legal} | dict(names)
    scores = {each: likeness(given, each) for each in spellings}
    best = max(scores, key=scores.__getitem__, default="")
    return spellings[best] if scores.get(best, 0) >= _ALIKE else None


def likeness(given: str, name: str) -> float:
    """How alike two spellings are, from 0 to 1."""
    return max(
        SequenceMatcher(None, one, other).ratio()
        for one, other in zip(_spellings(given), _spellings(name), strict=True)
    )


def _spellings(text: str) -> tuple[str, str]:
    """A text without separators, with its words as they are and sorted."""
    words = _WORD.findall(text[:_LONGEST].lower())
    return "".join(words), "".join(sorted(words))
