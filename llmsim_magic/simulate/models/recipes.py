"""From whatever the user names to a weightless model, built once and kept for the next question."""

import copy
import importlib
import json
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.models.config_limits import check_sizes
from llmsim_magic.capture.models.resolve import Facts, Source, facts_of, source_of
from llmsim_magic.records.deferred_interrupt import Orderly
from llmsim_magic.records.errors import (
    Cancelled,
    CannotTrace,
    InvalidValue,
    is_a,
    plain,
    reason,
    type_name,
)
from llmsim_magic.records.printable import legible
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never
from llmsim_magic.simulate.models import session_cache
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import Weightless

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to come by a model, here or in another process: `key` is equal for equal models."""

    name: str
    key: Hashable
    build: Build
    facts: Facts | None = None
    config: Any = None
    weightless: "Weightless | None" = None


def recipe_of(model: Any, build: Build, progress: Progress = silent) -> Recipe:
    """The recipe of a hub id, a path, a config or a live module, which is copied at once.

    Raises `UnknownModel` or `CannotTrace`, and `InvalidValue` for what is no model at all or an
    option that a live module cannot take.
    """
    facts = facts_of(str(model), refresh=build.refresh) if is_a(model, str) else None
    progress("importing torch and transformers")
    _require_torch()
    from llmsim_magic.capture.meta.isolation import working
    from llmsim_magic.capture.models.live_model_copy import copy_of
    from llmsim_magic.capture.models.meta_model import is_config, is_module
    from llmsim_magic.capture.parallel.sharding import sharded

    if facts is not None:
        return _of_facts(facts, build)
    if not is_module(model) and not is_config(model):
        legal = "a hub id, a path, a PretrainedConfig or an nn.Module"
        raise InvalidValue("model", type_name(model), legal)
    name = legible(_name(model))
    if is_module(model):
        _as_it_is(build)
        progress(f"copying {name} without its weights")
        with Orderly(), working:
            copied = sharded(copy_of(model, name), build.parallel)
        return Recipe(name, None, build, weightless=copied)
    try:
        keys, config = model.to_dict(), copy.deepcopy(model)
        content = json.dumps(config, default=_content)
    except Exception as error:
        raise InvalidValue(f"{name}: config", plain(error), "written as JSON") from error
    check_sizes(name, keys)
    return Recipe(name, (type(model), content, name, build), build, config=config)


def _of_facts(facts: Facts, build: Build) -> Recipe:
    key = (json.dumps(facts.keys), facts.name, facts.origin, facts.where, build)
    return Recipe(facts.name, key, build, facts=facts)


def spread(recipe: Recipe, model: Any, parallel: Parallel) -> Recipe:
    """The recipe of the same model spread otherwise; where its config came from is not asked."""
    build = replace(recipe.build, parallel=parallel)
    return recipe_of(model, build) if recipe.facts is None else _of_facts(recipe.facts, build)


def built(
    recipe: Recipe, progress: Progress = silent, cancelled: IsCancelled = never
) -> "Weightless":
    """The model of a recipe, kept for the next question.

    Raises `CannotTrace` where it cannot be built, `Cancelled` where that was cancelled.
    """
    if recipe.weightless is not None:
        return recipe.weightless
    from llmsim_magic.capture.meta.isolation import working

    progress(f"building {recipe.name} without weights")
    try:
        with Orderly(cancelled), working:
            return session_cache.model(recipe.key, lambda: _build(recipe))
    except KeyboardInterrupt:
        if cancelled():
            raise Cancelled(f"{recipe.name}: cancelled while it was built") from None
        raise


def until_idle() -> None:
    """Wait while another thread builds or runs a model: a build sets torch's default dtype."""
    alone = sys.modules.get("llmsim_magic.capture.meta.isolation")
    if alone is not None:
        with Orderly(), alone.working:
            pass


def traced(
    recipe: Recipe, workload: Workload, replay: bool, cancelled: IsCancelled = never
) -> Trace:
    """The trace of a workload, remembered; with `replay` layers that are alike run once.

    Raises `KeyboardInterrupt` once it is cancelled.
    """
    from llmsim_magic.capture.meta.isolation import default_dtype
    from llmsim_magic.capture.run import run

    weightless = built(recipe)
    needs_config(weightless)
    question = (workload, replay, default_dtype())
    return session_cache.trace(
        weightless, question, lambda: run(weightless, workload, replay=replay, cancelled=cancelled)
    )


def needs_config(weightless: "Weightless") -> None:
    """Raises `InvalidValue` for a module that does not say what it reads."""
    from llmsim_magic.capture.inputs.context_length import is_huggingface

    if not is_huggingface(weightless.module):
        raise InvalidValue(
            "model",
            weightless.info.class_name,
            "a HuggingFace model: in Python, llmsim.trace(module, inputs=(x,)) traces any module",
        )


def _build(recipe: Recipe) -> "Weightless":
    from llmsim_magic.capture.models.meta_model import from_config
    from llmsim_magic.capture.parallel.sharding import sharded

    build = recipe.build
    if recipe.facts is None:
        source = Source(recipe.name, recipe.config, "config object")
    else:
        facts = replace(recipe.facts, keys=copy.deepcopy(recipe.facts.keys))
        source = source_of(facts, trust_remote_code=build.trust_remote_code)
    whole = from_config(
        source,
        base=build.base,
        attention=build.attn,
        dtype=build.dtype,
        trust_remote_code=build.trust_remote_code,
    )
    return sharded(whole, build.parallel)


def _name(model: Any) -> str:
    """What a live model or a config calls itself, or its class."""
    try:
        return str(model.name_or_path or type_name(model))
    except Exception:
        return type_name(model)


def _content(value: Any) -> Any:
    """All that a config and those within it say, what they keep to themselves included."""
    return vars(value) if hasattr(value, "__dict__") else repr(value)


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
            with Orderly(insists=False):  # torch does not survive half an import
                importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
        except Exception as error:  # as where the working folder is gone, which transformers reads
            raise CannotTrace(f"{package} cannot be imported: {reason(error)}") from error
