"""The name of the cache in a forward and its output: `cache` since transformers 5.24."""

import inspect
from typing import Any

NAMES = ("cache", "past_key_values", "cache_params")


def cache_keyword(model: Any) -> str:
    """The keyword by which the model's forward takes its cache."""
    accepted = inspect.signature(model.forward).parameters
    return next(name for name in NAMES if name in accepted)


def cache_of(output: Any) -> Any:
    """The cache in a model's output; None without one."""
    return next((output[name] for name in NAMES if output.get(name) is not None), None)
