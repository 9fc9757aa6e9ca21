"""Resolve a hub id, path, config or live module to a recipe: how to build its meta model."""

import copy
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.checkpoint.found_config import FoundConfig
from llmsim_magic.capture.configs.config_limits import check_sizes
from llmsim_magic.capture.configs.remote_code import code_digest
from llmsim_magic.capture.configs.resolve import find_config
from llmsim_magic.capture.hub.request import HubWait
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import InvalidValue, describe, is_instance, type_name
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled
from llmsim_magic.simulate.models.frameworks import CodeState, code_state, require_frameworks
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

Progress = Callable[[str], None]


def no_progress(message: str) -> None:
    """The default `progress`: ignores the message."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelRecipe:
    """How to build a model, in this process or another one.

    Attributes:
        name: the name shown to the user.
        key: of the session's caches; equal for equal models, None for a live module.
        build: head, attention, dtype and parallel layout.
        identity: the config and how the model is built, as text by which records are kept on disk;
            None if nothing of this model may be kept.
        code: the code that builds and runs the model.
        facts: the config that was found for a hub id or a path.
        config: the config object that was given.
        meta_model: the copy of the live module that was given.
        loss: computes the loss of a training step from the output; None for the model's own.
    """

    name: str
    key: Hashable
    build: Build
    identity: str | None = None
    code: CodeState | None = None
    facts: FoundConfig | None = None
    config: Any = None
    meta_model: "MetaModel | None" = None
    loss: Callable[[Any], Any] | None = None

    @property
    def owner(self) -> Hashable:
        """Who owns traces in the session's cache; with a loss the recipe itself."""
        if self.loss is not None:
            return self
        return self.key if self.meta_model is None else self.meta_model


def model_recipe(
    model: Any,
    build: Build,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
) -> ModelRecipe:
    """The recipe of a model; that of a name needs neither torch nor transformers.

    A live module is copied without its weights immediately.

    Args:
        model: a hub id, a path, a `PretrainedConfig` or an `nn.Module`.
        build: how to build the model.
        progress: called with a message before each step.
        cancelled: polled while waiting for the hub.

    Raises:
        UnknownModel: no config was found.
        Cancelled: cancelled while waiting for the hub.
        CannotTrace: torch or transformers is missing, or the module cannot be copied.
        InvalidValue: not a model, or an option that a live module or config cannot take.
    """
    if is_instance(model, str):
        wait = HubWait(progress, cancelled)
        facts = find_config(str(model), refresh=build.refresh, wait=wait)
        return _recipe_of_config_file(facts, build)
    require_frameworks(progress)
    from llmsim_magic.capture.meta.isolation import model_lock
    from llmsim_magic.capture.models.live_model_copy import (
        copy_without_weights,
        module_of_forward,
    )
    from llmsim_magic.capture.models.meta_model import is_config, is_module
    from llmsim_magic.capture.parallel.sharding import sharded

    model = module_of_forward(model)
    if not is_module(model) and not is_config(model):
        legal = "a hub id, a path, a PretrainedConfig or an nn.Module"
        raise InvalidValue.must_be("model", type_name(model), legal)
    if build.refresh:
        raise InvalidValue(
            f"refresh=True cannot be applied to a {type_name(model)} object, which is traced as it "
            "is; pass a hub id to read its config from the hub"
        )
    name = printable(_model_name(model))
    if is_module(model):
        _require_default_build(build)
        progress(f"copying {name} without its weights")
        with DeferredInterrupt(), model_lock:
            is_trained = build.training is not None
            copied = copy_without_weights(model, name, is_trained=is_trained)
            copied = sharded(copied, build.parallel)
            if build.training is not None:
                from llmsim_magic.capture.train.trainable import trainable

                copied = trainable(copied, build.training)
        return ModelRecipe(name=name, key=None, build=build, meta_model=copied)
    return _recipe_of_config(model, name, build)


def _recipe_of_config(given: Any, name: str, build: Build) -> ModelRecipe:
    try:
        keys, config = given.to_dict(), copy.deepcopy(given)
        content = json.dumps(config, default=_json_content)
    except Exception as error:
        raise InvalidValue(
            f"{name}: the config cannot be copied or written as JSON ({describe(error)}); "
            "use plain values in it"
        ) from error
    check_sizes(name, keys)
    code = code_state()
    return ModelRecipe(
        name=name,
        key=(type(given), content, name, build, code),
        build=build,
        identity=_identity_of_config(config, build),
        code=code,
        config=config,
    )


def _identity_of_config(config: Any, build: Build) -> str | None:
    """The identity of a config object; None if code or values of the user's are in it."""
    kind = type(config)
    if not kind.__module__.startswith("transformers.") or getattr(config, "auto_map", None):
        return None
    try:
        content = json.dumps(config, default=_content_of_transformers, sort_keys=True)
    except (TypeError, ValueError):
        return None
    return repr((kind.__module__, kind.__qualname__, content, build))


def _content_of_transformers(value: Any) -> Any:
    """The attributes of a nested config, or the name of a dtype."""
    package = type(value).__module__.partition(".")[0]
    if package == "transformers":
        return [type(value).__qualname__, vars(value)]
    if package == "torch":
        return str(value)
    raise TypeError


def _recipe_of_config_file(facts: FoundConfig, build: Build) -> ModelRecipe:
    from llmsim_magic.capture.checkpoint.checkpoint import checkpoint_version

    content = json.dumps([facts.keys, facts.adapter, facts.notes])
    version = checkpoint_version(facts)
    code = code_state()
    return ModelRecipe(
        name=facts.name,
        key=(content, facts.name, facts.origin, facts.location, version, build, code),
        build=build,
        identity=_identity_of_file(facts, version, build),
        code=code,
        facts=facts,
    )


def _identity_of_file(facts: FoundConfig, version: Any, build: Build) -> str | None:
    """The identity of a config that was found; None if it runs code that is not at hand.

    Equal wherever the same repository's config was read from, except for the catalogue, whose
    entries are known to give the published number of parameters.
    """
    code: str | None = ""
    if build.trust_remote_code and "auto_map" in facts.keys:
        code = code_digest(facts)
    if code is None:
        return None
    keys = sorted(facts.keys.items())  # inside a value the first rule that matches may apply
    content = json.dumps([keys, facts.adapter])
    is_entry = facts.origin == "catalogue"
    built = replace(build, refresh=False)
    return repr((content, facts.name, is_entry, facts.location, version, built, code))


def with_loss(recipe: ModelRecipe, loss: Callable[[Any], Any] | None) -> ModelRecipe:
    """The recipe of the same model with another loss; nothing that it gives is kept on disk."""
    return recipe if loss is None else replace(recipe, identity=None, loss=loss)


def with_code_of_now(recipe: ModelRecipe) -> ModelRecipe:
    """The recipe of the same model, built of the code that the process runs now."""
    now = code_state()
    if recipe.code in (None, now):
        return recipe
    return replace(recipe, key=(recipe.key, now), code=now)


def rebuilt_recipe(recipe: ModelRecipe, model: Any, build: Build) -> ModelRecipe:
    """The recipe of the same model, built in another way, without reading its config again."""
    if recipe.facts is None:
        return model_recipe(model, build)
    return _recipe_of_config_file(recipe.facts, build)


def _model_name(model: Any) -> str:
    """The `name_or_path` of a live model or a config, or the name of its class."""
    try:
        return str(model.name_or_path or type_name(model))
    except Exception:
        return type_name(model)


def _json_content(value: Any) -> Any:
    """All attributes of a config, including private ones and nested configs."""
    return vars(value) if hasattr(value, "__dict__") else repr(value)


def _require_default_build(build: Build) -> None:
    """Reject options that would rebuild a live module: it has a head, attention and dtype."""
    for option in ("base", "attn", "dtype"):
        if value := getattr(build, option):
            raise InvalidValue(
                f"{option}={value!r} cannot be applied to a live module, which stays unchanged; "
                f"pass its config or its hub id to choose {option}"
            )
