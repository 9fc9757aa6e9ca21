"""Read the names of modules in a checkpoint's `quantization_config`, as its author wrote them."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

# Keys that list modules which keep the model's dtype, of every library that transformers loads.
_EXCLUDED = (
    *("modules_to_not_convert", "ignore", "exclude_modules", "exclude", "exclude_layers"),
    *("llm_int8_skip_modules", "skip_modules", "ignored_layers", "modules_to_exclude"),
    "linear_weights_not_to_quantize",
)

LINEAR = "Linear"  # the class that compressed-tensors targets to quantise every linear layer

# Means what transformers keeps where a config of these methods has no list: the head, mostly.
KEPT_BY_DEFAULT = "<kept by default>"
_LISTS = {
    "bitsandbytes": "llm_int8_skip_modules",
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
}


def excluded_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names and patterns of modules that a `quantization_config` leaves unquantised.

    Names are as written, such as `lm_head`, `model.visual`, `re:visual.*` or `*self_attn*`, without
    a final `.weight`. In GPTQModel's `dynamic`, `-:` marks a regular expression that excludes.
    """
    nested = config.get("quantization")  # modelopt's own file
    keys = {**config, **nested} if isinstance(nested, Mapping) else config
    values = [keys.get(key) for key in _EXCLUDED]
    dynamic = config.get("dynamic")
    if isinstance(dynamic, Mapping):
        values.append([name for name in dynamic if name.startswith("-:")])
    return tuple(dict.fromkeys(name for value in values for name in _texts(value)))


def quantization_method(config: Mapping[str, Any]) -> str:
    """The `quant_method` of a `quantization_config` in lower case; older ones only imply it."""
    method = str(config.get("quant_method", "")).lower()
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if not method and has_mlx_keys(config) else method


def kept_by_default(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`KEPT_BY_DEFAULT` if transformers chooses what is not quantised; else nothing."""
    key = _LISTS.get(quantization_method(config))
    return (KEPT_BY_DEFAULT,) if key is not None and config.get(key) is None else ()


def module_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All names of modules in a `quantization_config`."""
    groups = config.get("config_groups")
    targets = [
        target
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        for target in group_targets(group)
        if target != LINEAR
    ]
    names = (*excluded_names(config), *layouts_by_name(config), *quantized_blocks(config))
    return tuple(dict.fromkeys((*names, *targets, *kept_by_default(config))))


def group_targets(group: Any) -> tuple[str, ...]:
    """The classes, paths and patterns (`re:`) that a config group of compressed-tensors selects.

    Without `targets` it selects every linear layer.
    """
    targets = group.get("targets") if isinstance(group, Mapping) else None
    return tuple(_texts(targets)) if targets is not None else (LINEAR,)


def has_quantized_weights(config: Mapping[str, Any]) -> bool:
    """Whether weights are quantised; compressed-tensors may quantise only activations or a cache.

    It also writes its config for models that are only pruned.
    """
    if quantization_method(config) != "compressed-tensors":
        return True
    groups = config.get("config_groups")
    values = groups.values() if isinstance(groups, Mapping) else ()
    return any(isinstance(group, Mapping) and group.get("weights") for group in values)


def quantized_blocks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the only blocks that auto-round quantised; empty if it names none."""
    value = config.get("block_name_to_quantize") or config.get("to_quant_block_names")
    values = value.split(",") if isinstance(value, str) else value
    return tuple(each.strip() for each in _texts(values))


def layouts_by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a `quantization_config` gives to modules by name, such as their bits.

    auto-round has them in `extra_config`, modelopt in `quantized_layers`, GPTQModel in `dynamic`
    (except for names it excludes), and mlx in keys of the config that are paths. A value of False
    leaves a module unquantised.
    """
    nested = config.get("quantization")  # modelopt's own file
    found: dict[str, Any] = {}
    for value in (
        config.get("extra_config"),
        config.get("quantized_layers"),
        nested.get("quantized_layers") if isinstance(nested, Mapping) else None,
    ):
        if isinstance(value, Mapping):
            found.update(value)
    dynamic = config.get("dynamic")
    if isinstance(dynamic, Mapping):
        found.update((name, keys) for name, keys in dynamic.items() if not name.startswith("-:"))
    paths = {key: value for key, value in config.items() if "." in key or has_mlx_keys(value)}
    return {str(name): value for name, value in (found | paths).items()}


def has_mlx_keys(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a layout as mlx writes it, whose configs have no `quant_method`."""
    return isinstance(value, Mapping) and {"bits", "group_size"} <= value.keys()


def _texts(value: Any) -> Iterator[str]:
    for each in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(each, str) and each:
            yield each.removesuffix(".weight")
