"""Any model type of transformers, made small enough to run with real weights on the CPU."""

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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
        if isinstance(value, dict) and _is_config(value):
            made[key] = smaller(value, layers, divisor)
        elif key in depth:
            made[key] = depth[key]
        elif _is_for_each_layer(key, value, lengths):
            made[key] = value[: lengths[len(value)]]
        elif isinstance(value, int) and not isinstance(value, bool):
            made[key] = _fewer(key, value, divisor)
        elif WIDTHS.search(key) and not FIXED.search(key):
            made[key] = _divided(value, divisor)
        else:
            made[key] = value
    return made


def _is_for_each_layer(key: str, value: Any, lengths: dict[int, int]) -> bool:
    """Whether a list, or a pattern of letters, has an item for each of the layers that are cut."""
    if isinstance(value, str):
        return "pattern" in key and len(value) in lengths
    return isinstance(value, list) and "layer" in key and len(value) > 2 and len(value) in lengths


def _fewer(key: str, value: int, divisor: int) -> int:
    """A number of experts, of those chosen, or a width."""
    if EXPERTS.search(key):
        return min(value, 4)
    if CHOICES.search(key) or key == "n_group":
        return min(value, 2)
    if WIDTHS.search(key) and not FIXED.search(key):
        return int(_divided(value, divisor))
    return value


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


def completed(keys: dict[str, Any]) -> dict[str, Any]:
    """The same with what some default configurations leave out or contradict.

    Sizes that are None, grouped heads, a vision tower that is wider than the text model it feeds,
    rotary sections of another head size, a backbone from a package that need not be there.
    """
    made = {
        key: completed(value) if isinstance(value, dict) and _is_config(value) else value
        for key, value in keys.items()
    }
    for key, value in _LEFT_OUT.items():
        if key in made and made[key] is None:
            made[key] = value
    _complete_heads(made)
    text, vision = made.get("text_config"), made.get("vision_config")
    if isinstance(text, dict) and isinstance(vision, dict) and text.get("hidden_size"):
        for key in ("out_hidden_size", "projection_dim", "projector_hidden_size"):
            if key in vision:
                vision[key] = text["hidden_size"]
    backbone = made.get("backbone_config", {})
    if backbone is None or backbone.get("model_type") == "timm_backbone":
        made |= _RESNET
    return made


def _complete_heads(keys: dict[str, Any]) -> None:
    """What follows from a width and a number of heads."""
    heads, width = keys.get("num_attention_heads"), keys.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int):
        derived = {
            "num_key_value_heads": heads,
            "head_dim": width // heads,
            "attention_head_dim": width // heads,
            "intermediate_size": 2 * width,
            "moe_intermediate_size": width,
        }
        for key, number in derived.items():
            if keys.get(key) is None:
                keys[key] = number
        _fit_rotary_sections(keys, width // heads)
    if isinstance(keys.get("moe_intermediate_size"), int):  # a grouped matmul wants 16 bytes
        keys["moe_intermediate_size"] = -(-keys["moe_intermediate_size"] // 16) * 16


_RESNET: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_kwargs": None,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
_LEFT_OUT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "prediction_length": 8,
    "image_token_index": 200,
    "image_token_id": 200,
    "video_token_index": 201,
    "video_token_id": 201,
    "attn_layer_indices": [1],
}


def _is_config(value: dict[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in value)


def _fit_rotary_sections(keys: dict[str, Any], head: int) -> None:
    rotary = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if rotary:
        half = int((keys.get("head_dim") or head) * rotary.get("partial_rotary_factor", 1.0)) // 2
        rotary["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


class Small(NamedTuple):
    """A small configuration; `completed` where more had to be changed than sizes."""

    config: transformers.PretrainedConfig
    completed: bool


# Most layers, the divisor of widths, few tokens, completed or not.
_CHANGES = (
    (2, 8, True, False),
    (2, 8, True, True),
    (2, 4, True, False),
    (2, 1, True, False),
    (2, 1, True, True),
    (None, 8, False, False),
    (None, 8, True, True),
    (2, 1, False, False),
)


def candidates(model_type: str) -> Iterator[Small]:
    """Configurations of a type from a small one to its own default; the first that runs is it."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    whole = config_class().to_dict()
    for layers, divisor, few, complete in _CHANGES:
        keys = smaller(copy.deepcopy(whole), layers, divisor)
        if few:
            keys = with_small_vocabulary(keys)
        if complete:
            keys = completed(keys)
        try:
            config = config_class.from_dict(keys)
        except Exception:
            continue
        yield Small(config, complete)
