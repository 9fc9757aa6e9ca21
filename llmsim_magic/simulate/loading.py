"""From whatever the user names to a weightless model, built once and kept for the next question."""

import importlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.resolve import Facts, Source, facts_of, source_of
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.weightless import Weightless

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Progress that nobody watches."""


def load(model: Any, build: Build, progress: Progress = silent) -> "Weightless":
    """A weightless model from a hub id, a path, a config or a live module.

    Raises `UnknownModel` or `CannotTrace`, and `InvalidValue` for what is no model at all.
    """
    if isinstance(model, str):
        facts = facts_of(model, refresh=build.refresh)
        progress("importing torch and transformers")
        _import_torch()
        progress(f"building {facts.name} without weights")
        return _from_facts(json.dumps(facts.keys), facts.name, facts.origin, build)
    torch = _import_torch()
    if isinstance(model, torch.nn.Module):
        from llmsim_magic.capture.weightless import copy_of

        progress(f"copying {type(model).__name__} without its weights")
        return copy_of(model, getattr(model, "name_or_path", "") or type(model).__name__)
    if hasattr(model, "to_dict") and hasattr(model, "model_type"):
        from llmsim_magic.capture.weightless import from_config

        name = getattr(model, "name_or_path", "") or type(model).__name__
        progress(f"building {name} without weights")
        return from_config(Source(name, model, "config object"), **_options(build))
    raise InvalidValue(
        "model", type(model).__name__, "a hub id, a path, a PretrainedConfig or an nn.Module"
    )


@lru_cache(maxsize=4)
def _from_facts(keys: str, name: str, origin: str, build: Build) -> "Weightless":
    from llmsim_magic.capture.weightless import from_config

    source = source_of(
        Facts(name, json.loads(keys), origin), trust_remote_code=build.trust_remote_code
    )
    return from_config(source, **_options(build))


def _options(build: Build) -> dict[str, Any]:
    return {
        "base": build.base,
        "attention": build.attn,
        "dtype": build.dtype,
        "trust_remote_code": build.trust_remote_code,
    }


def _import_torch() -> Any:
    """torch, or one line on how to get its small CPU build."""
    try:
        importlib.import_module("transformers")
        return importlib.import_module("torch")
    except ImportError as error:
        raise CannotTrace(
            f"{error.name} is not installed: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu && pip install transformers"
        ) from error
