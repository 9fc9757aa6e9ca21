"""The sizes that a config gives: whether it has any, and whether they are possible."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmsim_magic.records.errors import CannotTrace, shorten

# Keys that count objects which Python builds one by one, with a maximum that no model reaches.
_MAX_COUNTS = {
    re.compile(r"(^|_)(layers?|blocks?|depths?)$"): 1_000,
    re.compile(r"(^|_)(heads?|experts|codebooks|quantizers)$"): 20_000,
    re.compile(r"(^|_)labels$"): 100_000,
}
# Keys whose value must be positive.
_POSITIVE_KEYS = re.compile(
    r"^(hidden_size|vocab_size|d_model|n_embd|n_layers?|n_heads?|num_heads"
    r"|num_(hidden_layers|attention_heads|key_value_heads|channels)|image_size|patch_size)$"
)
# Keys whose value is a number of layers or heads, or a dimension of weights.
_SIZE_KEYS = re.compile(
    r"(^|_)(layers?|blocks?|depths?|heads?|experts|channels|dims?|width|embd|inner|filters"
    r"|d_model|d_ff|d_kv)$|(^|_)(hidden|intermediate|embedding|vocab|patch|image)_sizes?$"
)


def gives_sizes(keys: Mapping[str, Any]) -> bool:
    """Whether a config gives any size of its model, in itself or in a nested config.

    Sizes of its quantisation are none of the model, nor is a default of transformers: pass the
    keys of the file.
    """
    own = {key: value for key, value in keys.items() if key != "quantization_config"}
    return any(value > 0 and _SIZE_KEYS.search(key) for key, value in _integers(own))


def check_sizes(name: str, keys: Mapping[str, Any]) -> None:
    """Reject a config with a size below one or an absurd number of layers, heads or labels.

    Args:
        name: The model's name, for the error message.
        keys: The content of the `config.json`, with nested configs.

    Raises:
        CannotTrace: If a size is out of range; the message names the key and the limit.
    """
    for key, value in _integers(keys):
        if value < 1 and _POSITIVE_KEYS.search(key):
            raise CannotTrace(f"{name}: {key} {value} in its config must be at least 1")
        for pattern, maximum in _MAX_COUNTS.items():
            if value > maximum and pattern.search(key):
                raise CannotTrace(
                    f"{name}: {key} {shorten(value)} in its config must be at most {maximum}"
                )


def _integers(keys: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Yield every integer of a config and its nested configs, with its key."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and depth < 5:
            yield from _integers(value, depth + 1)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                yield str(key), item
