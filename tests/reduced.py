"""Any model type of transformers, made small enough to run with real weights on the CPU."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import transformers

LAYERS = re.compile(
    r"(^|_)(num_)?(hidden_|encoder_|decoder_|self_attention_)?(layers?|blocks?)$|(^|_)depth$|^n_layers?$|^num_.*_layers$"
)
WIDTHS = re.compile(
    r"(hidden|embed|intermediate|inner|ffn|head|model|proj|key|value|state|conv|rope|lora|qk|kv|fc|out|inter|d)"
    r"_?(\w*_)?(size|dim|dims|channels|rank|sizes|d|width)$"
    r"|^(d_\w+|\w*width|hidden_sizes|n_embd|n_inner|dim|\w+_dim|\w+_dims|\w+_channels|mrope_section|\w*lora_rank|hidden_size\w*|ffn_dim\w*|\w+_ffn_dim|intermediate_size\w*)$"
)
EXPERTS = re.compile(r"experts$|^n_routed_experts$|^moe_num_experts$")
CHOICES = re.compile(r"(top_?k|per_tok(en)?)")
FIXED = re.compile(
    r"image|patch|position|window|kernel|stride|num_|vocab|frames|channels_in|num_channels|in_channels|mel|audio_channels"
)
VOCABULARY = 256
LONGEST = 8


def kinds_covered(kinds: Any, least: int) -> int:
    """How many layers from the first hold every kind of layer that there is."""
    for number in range(least, len(kinds)):
        if set(kinds[:number]) == set(kinds):
            return number
    return len(kinds)


def _depth(keys: dict[str, Any], least: int) -> dict[str, int]:
    """The number of layers that each layer count is cut to."""
    found = {}
    for key, value in keys.items():
        if LAYERS.search(key) and isinstance(value, int) and not isinstance(value, bool):
            new = min(value, least)
            for other, kinds in keys.items():
                if "layer" in other and isinstance(kinds, (list, str)) and len(kinds) == value > 1:
                    unlike = [str(kind) for kind in kinds]
                    new = max(new, min(kinds_covered(unlike, new), LONGEST))
            found[key] = new
    return found


def smaller(keys: dict[str, Any], layers: int | None, divisor: int) -> dict[str, Any]:
    """The keys of a config with fewer layers and experts and narrower widths."""
    depth = _depth(keys, layers) if layers else {}
    lengths = {keys[key]: new for key, new in depth.items()}
    made: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            made[key] = smaller(value, layers, divisor)
        elif key in depth:
            made[key] = depth[key]
        elif (
            isinstance(value, (list, str))
            and len(value) in lengths
            and len(value) > 2
            and "layer" in key
            or (isinstance(value, str) and "pattern" in key and len(value) in lengths)
        ):
            made[key] = value[: lengths[len(value)]]
        elif EXPERTS.search(key) and isinstance(value, int) and not isinstance(value, bool):
            made[key] = min(value, 4)
        elif CHOICES.search(key) and isinstance(value, int) and not isinstance(value, bool):
            made[key] = min(value, 2)
        elif key == "n_group" and isinstance(value, int):
            made[key] = min(value, 2)
        elif WIDTHS.search(key) and not FIXED.search(key):
            made[key] = _divided(value, divisor)
        else:
            made[key] = value
    return made


def _divided(value: Any, divisor: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, list)):
        return value
    if isinstance(value, list):
        return [_divided(item, divisor) for item in value]
    return value // divisor if value % divisor == 0 and value >= 2 * divisor else value


def with_small_vocabulary(keys: dict[str, Any]) -> dict[str, Any]:
    """The same with few tokens, the special ones among them still apart from each other."""
    numbers: dict[int, int] = {}

    def token(old: int) -> int:
        if old < VOCABULARY - 64:
            return old
        return numbers.setdefault(old, VOCABULARY - 1 - len(numbers))

    def within(part: Any, key: str = "") -> Any:
        if isinstance(part, dict):
            return {name: within(item, str(name)) for name, item in part.items()}
        if key.endswith(("_token_id", "_token_index", "_token_ids")):
            if isinstance(part, list):
                return [within(item, key) for item in part]
            return token(part) if isinstance(part, int) else part
        if key.endswith("vocab_size") and isinstance(part, int):
            return min(part, VOCABULARY)
        return part

    return within(keys)


def candidates(model_type: str) -> Iterator[transformers.PretrainedConfig]:
    """Smaller and smaller changes of a type's default configuration, until none is left."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    whole = config_class().to_dict()
    for layers, divisor, few in (
        (2, 8, True),
        (2, 4, True),
        (2, 2, True),
        (2, 1, True),
        (None, 8, True),
        (None, 8, False),
        (2, 1, False),
    ):
        keys = smaller(copy.deepcopy(whole), layers, divisor)
        if few:
            keys = with_small_vocabulary(keys)
        try:
            yield config_class.from_dict(keys)
        except Exception:
            continue
