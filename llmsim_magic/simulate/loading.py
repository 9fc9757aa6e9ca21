"""From whatever the user names to a weightless model, built once and kept for the next question."""

import copy
import importlib
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.plausible import check_sizes
from llmsim_magic.capture.resolve import Facts, Source, facts_of, source_of
from llmsim_magic.records.errors import Cancelled, CannotTrace, InvalidValue, in_line
from llmsim_magic.records.trace import Trace
from llmsim_magic.records.workload import IsCancelled, Workload, never
from llmsim_magic.simulate import memory
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.weightless import Weightless

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Progress that nobody watches."""


_building = Lock()  # no model twice at once


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
    facts = facts_of(model, refresh=build.refresh) if isinstance(model, str) else None
    progress("importing torch and transformers")
    _require_torch()
    from llmsim_magic.capture.sharding import sharded
    from llmsim_magic.capture.weightless import copy_of, is_module

    if facts is not None:
        key: Hashable = (json.dumps(facts.keys), facts.name, facts.origin, facts.where, build)
        return Recipe(facts.name, key, build, facts=facts)
    name = _name(model)
    if is_module(model):
        _as_it_is(build)
        progress(f"copying {name} without its weights")
        return Recipe(name, None, build, weightless=sharded(copy_of(model, name), build.parallel))
    is_config = hasattr(model, "to_dict") and hasattr(model, "model_type")
    if is_config and not isinstance(model, type):
        check_sizes(name, model.to_dict())
        config = copy.deepcopy(model)
        try:
            content = json.dumps(config, default=_content)
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"{name}: config", str(error), "written as JSON") from error
        return Recipe(name, (type(model), content, name, build), build, config=config)
    raise InvalidValue(
        "model", type(model).__name__, "a hub id, a path, a PretrainedConfig or an nn.Module"
    )


def built(
    recipe: Recipe, progress: Progress = silent, cancelled: IsCancelled = never
) -> "Weightless":
    """The model of a recipe, kept for the next question.

    Raises `CannotTrace` where it cannot be built, `Cancelled` where that was cancelled.
    """
    if recipe.weightless is not None:
        return recipe.weightless
    progress(f"building {recipe.name} without weights")
    try:
        with _building:
            return memory.model(recipe.key, lambda: _build(recipe, cancelled))
    except KeyboardInterrupt:
        if cancelled():
            raise Cancelled(f"{recipe.name}: cancelled while it was built") from None
        raise


def traced(
    recipe: Recipe, workload: Workload, replay: bool, cancelled: IsCancelled = never
) -> Trace:
    """The trace of a workload, remembered; with `replay` layers that are alike run once.

    Raises `KeyboardInterrupt` once it is cancelled.
    """
    from llmsim_magic.capture.run import run

    weightless = built(recipe)
    question = (workload, replay)
    return memory.trace(
        weightless, question, lambda: run(weightless, workload, replay=replay, cancelled=cancelled)
    )


def _build(recipe: Recipe, cancelled: IsCancelled) -> "Weightless":
    from llmsim_magic.capture.sharding import sharded
    from llmsim_magic.capture.weightless import from_config

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
        cancelled=cancelled,
    )
    return sharded(whole, build.parallel)


def _name(model: Any) -> str:
    try:
        name = getattr(model, "name_or_path", "")
    except Exception:  # a property of the user's own
        name = ""
    return in_line(name or type(model).__name__)


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
            importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
