"""Find models and configs in the user's variables."""

from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

from llmsim_magic.catalog import models
from llmsim_magic.records.background_import import is_imported
from llmsim_magic.records.errors import InvalidValue, is_instance, shorten, type_name


def find_model(name: str, variables: Mapping[str, Any]) -> Any:
    """The model, config or model name in a variable; the name itself if there is no variable.

    Args:
        name: a variable such as `model` or `trainer.model`, or a hub id or path.
        variables: the user's variables.

    Raises:
        InvalidValue: the variable holds something else.
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
    raise InvalidValue(
        f"the variable {shorten(name)} holds an object of type {type_name(value)}; name a "
        "variable that holds a model, a config or a model name"
    )


def _attribute(value: object, name: str) -> Any:
    """The attribute, or None if reading it fails: a property may raise anything."""
    try:
        return getattr(value, name)
    except Exception:
        return None


def model_variables(variables: Mapping[str, Any]) -> list[str]:
    """The names of public variables that hold a model or a config."""
    return [
        name for name, value in variables.items() if not name.startswith("_") and is_model(value)
    ]


def is_model(value: object) -> bool:
    """Whether a value is an `nn.Module`, its forward or a `PretrainedConfig`.

    Does not import torch.
    """
    try:
        if type(value) in (FunctionType, MethodType):
            return _is_forward(value)
        names = {f"{base.__module__}.{base.__qualname__}" for base in type(value).__mro__}
    except Exception:  # a metaclass may raise anything
        return False
    config = "transformers.configuration_utils.PreTrainedConfig"
    return bool(names & {"torch.nn.modules.module.Module", config})


def _is_forward(value: object) -> bool:
    """Whether a function is the forward of a module, compiled or not."""
    if not is_imported("torch"):
        return False
    from llmsim_magic.capture.models.live_model_copy import module_of_forward

    return module_of_forward(value) is not value
