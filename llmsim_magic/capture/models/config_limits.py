"""Refuse a config whose sizes no model has, before a class of transformers works on them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmsim_magic.records.errors import CannotTrace, shorten

# Keys that count parts which Python makes one by one, and more of them than any model has.
_COUNTS = {
    re.compile(r"(^|_)(layers?|blocks?|depths?)$"): 1_000,
    re.compile(r"(^|_)(heads?|experts|codebooks|quantizers)$"): 20_000,
    re.compile(r"(^|_)labels$"): 100_000,
}
# Keys that no model can have at zero.
_SIZES = re.compile(
    r"^(hidden_size|vocab_size|d_model|n_embd|n_layers?|n_heads?|num_heads"
    r"|num_(hidden_layers|attention_heads|key_value_heads|channels)|image_size|patch_size)$"
)


def check_sizes(name: str, keys: Mapping[str, Any]) -> None:
    """Raises `CannotTrace` for a size below one, or for more layers or heads than could be made."""
    for key, value in _numbers(keys):
        if value < 1 and _SIZES.search(key):
            raise CannotTrace(f"{name}: its config says {key} {value}: it must be 1 or more")
        for counted, most in _COUNTS.items():
            if value > most and counted.search(key):
                raise CannotTrace(
                    f"{name}: its config says {key} {shorten(value)}: no more than {most} can be"
                )


def _numbers(keys: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every whole number in a config, with its key; those of nested configs too."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and depth < 5:
            yield from _numbers(value, depth + 1)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield str(key), number
