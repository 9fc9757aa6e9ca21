"""From whatever the user names to a weightless model, built once and kept for the next question."""

import importlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.plausible import check_sizes
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

    Raises `UnknownModel` or `CannotTrace`, and `InvalidValue` for what is no model at all or an
    option that a live module cannot take.
    """
    facts = facts_of(model, refresh=build.refresh) if isinstance(model, str) else None
    progress("importing torch and transformers")
    _require_torch()
    from llmsim_magic.capture.weightless import copy_of, from_config, is_module

    if facts is not None:
        progress(f"building {facts.name} without weights")
        return _from_facts(json.dumps(facts.keys), facts.name, facts.origin, facts.where, build)
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    if is_module(model):
        _as_it_is(build)
        progress(f"copying {name} without its weights")
        return copy_of(model, name)
    is_config = hasattr(model, "to_dict") and hasattr(model, "model_type")
    if is_config and not isinstance(model, type):
        progress(f"building {name} without weights")
        check_sizes(name, model.to_dict())
        return from_config(Source(name, model, "config object"), **_options(build))
    raise InvalidValue(
        "model", type(model).__name__, "a hub id, a path, a PretrainedConfig or an nn.Module"
    )


@lru_cache(maxsize=4)
def _from_facts(keys: str, name: str, origin: str, where: str, build: Build) -> "Weightless":
    from llmsim_magic.capture.weightless import from_config

    source = source_of(
        Facts(name, json.loads(keys), origin, where), trust_remote_code=build.trust_remote_code
    )
    return from_config(source, **_options(build))


def _options(build: Build) -> dict[str, Any]:
    return {
        "base": build.base,
        "attention": build.attn,
        "dtype": build.dtype,
        "trust_remote_code": build.trust_remote_code,
    }


def _as_it_is(build: Build) -> None:
    """A live module is built already: its head, attention and dtype are its own."""
    for option in ("base", "attn", "dtype"):
        if value := getattr(build, option):
            raise InvalidValue(
                option,
                value,
                "an option for a live module, which is traced as it is: name a config",
            )


def _require_torch() -> None:
    """Say how to get torch's small CPU build where it is missing."""
    for package in ("torch", "transformers"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
