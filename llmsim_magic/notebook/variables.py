"""The user's variables: those that hold a model, a config or a name."""

from collections.abc import Mapping
from typing import Any

from llmsim_magic.catalog import models
from llmsim_magic.records.errors import InvalidValue, is_instance, type_name


def model_named(name: str, variables: Mapping[str, Any]) -> Any:
    """What a variable of that name holds, or the name itself where there is none.

    Raises `InvalidValue` for a variable that holds something else.
    """
    first, *attributes = name.split(".")
    if first not in variables:
        return name
    value = variables[first]
    for attribute in attributes:
        value = _attribute(value, attribute)
    if is_model(value) or is_instance(value, str):
        return value
    if models.find(name) is not None:
        return name
    raise InvalidValue.must_be(
        "model",
        name,
        f"a model, a config or a name: it holds an object of type {type_name(value)}",
    )


def _attribute(value: object, name: str) -> Any:
    """The attribute, or None where it cannot be had: a property may raise anything."""
    try:
        return getattr(value, name)
    except Exception:
        return None


def holding_models(variables: Mapping[str, Any]) -> list[str]:
    """The names of variables that hold a model or a config."""
    return [
        name for name, value in variables.items() if not name.startswith("_") and is_model(value)
    ]


def is_model(value: object) -> bool:
    """Whether a value is a module or a config, told without importing torch."""
    try:
        names = {f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__}
    except Exception:  # a metaclass may answer anything
        return False
    config = "transformers.configuration_utils.PreTrainedConfig"
    return bool(names & {"torch.nn.modules.module.Module", config})
