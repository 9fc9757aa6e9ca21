"""Shrinks the config of any transformers model so that it runs on the CPU."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import transformers

LAYERS = re.compile(r"(^|_)(layers?|blocks?|depth)$")
DENSE_LAYERS = re.compile(r"^(first_k_dense_replace|num_dense_layers|moe_layer_start_index)$")
EXPERTS = re.compile(r"experts$")
CHOICES = re.compile(r"top_?k|per_tok|^n_group$")
WIDTHS = re.compile(
    r"(dims?|channels|rank|width|section|source_positions)$|^(d_|n_embd|n_inner)"
    r"|(hidden|intermediate|embedding|head|state|projection|_input|_output)_sizes?"
)
FIXED = re.compile(r"num_|in_channels|audio_channels|image|patch|mel|kernel|pos_emb_")
VOCABULARY = 256
FEWEST, MOST = 2, 8  # layers


def shallower(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config with as few layers as hold one of every kind."""
    numbers = [value for key, value in keys.items() if LAYERS.search(key) and _is_number(value)]
    counts = {number for number in numbers if number > FEWEST}
    kinds = [
        [str(kind) for kind in value]
        for key, value in keys.items()
        if _is_list(key, value) and len(value) in counts
    ]

    def fewer(count: int) -> int:
        lasts = [1 + max(map(each.index, each)) for each in kinds if len(each) == count]
        return min(count, MOST, max([FEWEST, *lasts]))

    made: dict[str, Any] = {}
    for key, value in keys.items():
        if _is_config(value):
            made[key] = shallower(value)
        elif _is_list(key, value) and len(value) in counts:
            made[key] = value[: fewer(len(value))]
        elif DENSE_LAYERS.search(key) and _is_number(value):
            made[key] = min(value, FEWEST - 1)
        elif LAYERS.search(key) and _is_number(value):
            made[key] = fewer(value)
        else:
            made[key] = value
    return made


def narrower(keys: dict[str, Any], divisor: int) -> dict[str, Any]:
    """The keys of a config with fewer experts and a part of the widths."""
    return {
        key: narrower(value, divisor) if _is_config(value) else _less(key, value, divisor)
        for key, value in keys.items()
    }


def _less(key: str, value: Any, divisor: int) -> Any:
    """A number of experts, of those chosen, or a width, cut; anything else as it is."""
    if isinstance(value, list):
        return [_less(key, item, divisor) for item in value]
    if not _is_number(value):
        return value
    if EXPERTS.search(key):
        return min(value, 4)
    if CHOICES.search(key):
        return min(value, 2)
    is_width = WIDTHS.search(key) and not FIXED.search(key)
    return value // divisor if is_width and value % divisor == 0 and value > divisor else value


def _is_number(value: Any) -> TypeGuard[int]:
    return type(value) is int


def _is_list(key: str, value: Any) -> bool:
    """Whether it may have an item for each layer: a list, or a pattern of letters."""
    return isinstance(value, list) or (isinstance(value, str) and "pattern" in key)


def _is_config(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


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
    made = {key: completed(value) if _is_config(value) else value for key, value in keys.items()}
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


def _fit_rotary_sections(keys: dict[str, Any], head: int) -> None:
    rotary = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if rotary:
        half = int((keys.get("head_dim") or head) * rotary.get("partial_rotary_factor", 1.0)) // 2
        rotary["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


class Small(NamedTuple):
    """A small configuration; `completed` where more had to be changed than sizes."""

    config: transformers.PretrainedConfig
    completed: bool


# Few layers, the divisor of widths, few tokens, completed or not.
_CHANGES = (
    (True, 8, True, False),
    (True, 8, True, True),
    (True, 4, True, False),
    (True, 1, True, False),
    (True, 1, True, True),
    (False, 8, False, False),
    (False, 8, True, True),
    (True, 1, False, False),
)


def candidates(model_type: str) -> Iterator[Small]:
    """Configurations of a type from a small one to its own default; the first that runs is it."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    whole = config_class().to_dict()
    for shallow, divisor, few, complete in _CHANGES:
        keys = narrower(shallower(whole) if shallow else whole, divisor)
        if few:
            keys = with_small_vocabulary(keys)
        if complete:
            keys = completed(keys)
        try:
            config = config_class.from_dict(keys)
        except Exception:
            continue
        text = getattr(config, "text_config", None)
        if text is not None and hasattr(config, "tie_word_embeddings"):
            # A checkpoint is read by what both say; a default says it in one.
            text.tie_word_embeddings = config.tie_word_embeddings
        yield Small(config, complete)
