"""The names of modules in a checkpoint's `quantization_config`, as its author wrote them."""

from collections.abc import Iterator, Mapping
from typing import Any

# Keys that list modules which keep the model's dtype, of every library that transformers loads.
_EXCLUDED = (
    *("modules_to_not_convert", "ignore", "exclude_modules", "exclude", "exclude_layers"),
    *("llm_int8_skip_modules", "skip_modules", "ignored_layers", "modules_to_exclude"),
    "linear_weights_not_to_quantize",
)


def excluded_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names and patterns of modules that a `quantization_config` leaves unquantised.

    They are as written: `lm_head`, `model.visual`, `re:visual.*` or `*self_attn*`; the name of a
    weight is that of its module.
    """
    values = [config.get(key) for key in _EXCLUDED]
    return tuple(dict.fromkeys(name for value in values for name in _texts(value)))


def module_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All names of modules in a `quantization_config`: excluded, or with a layout of their own."""
    return tuple(dict.fromkeys((*excluded_names(config), *layouts_by_name(config))))


def layouts_by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `quantization_config` says of modules by name: their own bits, or that they have none.

    They are the values of `dynamic` (GPTQModel), `extra_config` (auto-round),
    `quantized_layers` (modelopt), `layer_quant_config` (quark), `module_fqn_to_config` (torchao),
    and, as mlx writes them, of keys that are paths.
    """
    found: dict[str, Any] = {}
    for key in ("dynamic", "extra_config", "quantized_layers", "layer_quant_config"):
        value = config.get(key)
        if isinstance(value, Mapping):
            found.update(value)
    found.update(_torchao_names(config))
    paths = {key: value for key, value in config.items() if isinstance(key, str) and "." in key}
    return {str(name): value for name, value in (found | paths).items() if name != "_default"}


def _torchao_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    default = config.get("quant_type")
    default = default.get("default") if isinstance(default, Mapping) else None
    data = default.get("_data") if isinstance(default, Mapping) else None
    for key in ("fqn_to_config", "module_fqn_to_config"):
        names = data.get(key) if isinstance(data, Mapping) else None
        if isinstance(names, Mapping):
            return names
    return {}


def _texts(value: Any) -> Iterator[str]:
    for each in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(each, str) and each:
            yield each.removesuffix(".weight")
