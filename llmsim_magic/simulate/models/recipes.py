"""Resolve a hub id, path, config or live module to a meta model, built once per session."""

import copy
import importlib
import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.checkpoint.checkpoint import checkpoint_version
from llmsim_magic.capture.checkpoint.found_config import FoundConfig
from llmsim_magic.capture.configs.config_limits import check_sizes
from llmsim_magic.capture.configs.resolve import ConfigSource, find_config, load_config
from llmsim_magic.capture.hub.request import HubWait
from llmsim_magic.capture.hub.settings import import_problem
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import (
    Cancelled,
    CannotTrace,
    InvalidValue,
    describe,
    is_instance,
    type_name,
)
from llmsim_magic.records.printable import printable
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.models import session_cache
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

Progress = Callable[[str], None]
_tracing_allowed: ContextVar[bool] = ContextVar("tracing_allowed", default=True)


def no_progress(message: str) -> None:
    """The default `progress`: ignores the message."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelRecipe:
    """How to build a model, in this process or another one.

    Attributes:
        name: the name shown to the user.
        key: cache key; equal for equal models, None for a live module.
        build: head, attention, dtype and parallel layout.
        facts: the config that was found for a hub id or a path.
        config: the config object that was given.
        meta_model: the copy of the live module that was given.
    """

    name: str
    key: Hashable
    build: Build
    facts: FoundConfig | None = None
    config: Any = None
    meta_model: "MetaModel | None" = None


def model_recipe(
    model: Any,
    build: Build,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
) -> ModelRecipe:
    """The recipe of a model. A live module is copied without its weights immediately.

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
    facts = None
    if is_instance(model, str):
        wait = HubWait(progress, cancelled)
        facts = find_config(str(model), refresh=build.refresh, wait=wait)
    progress("importing torch and transformers")
    _require_torch()
    from llmsim_magic.capture.meta.isolation import model_lock
    from llmsim_magic.capture.models.live_model_copy import (
        copy_without_weights,
        module_of_forward,
    )
    from llmsim_magic.capture.models.meta_model import is_config, is_module
    from llmsim_magic.capture.parallel.sharding import sharded

    if facts is not None:
        return _recipe_of_config_file(facts, build)
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
            copied = sharded(copy_without_weights(model, name), build.parallel)
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
    key = (type(given), content, name, build)
    return ModelRecipe(name=name, key=key, build=build, config=config)


def _recipe_of_config_file(facts: FoundConfig, build: Build) -> ModelRecipe:
    content = json.dumps([facts.keys, facts.adapter, facts.notes])
    version = checkpoint_version(facts)
    key = (content, facts.name, facts.origin, facts.location, version, build)
    return ModelRecipe(name=facts.name, key=key, build=build, facts=facts)


def parallel_recipe(recipe: ModelRecipe, model: Any, parallel: Parallel) -> ModelRecipe:
    """The recipe of the same model in another parallel layout, without reading its config again."""
    build = replace(recipe.build, parallel=parallel)
    if recipe.facts is None:
        return model_recipe(model, build)
    return _recipe_of_config_file(recipe.facts, build)


@contextmanager
def no_tracing() -> Iterator[None]:
    """Forbid tracing in this context: displaying a report must not start a trace."""
    token = _tracing_allowed.set(False)
    try:
        yield
    finally:
        _tracing_allowed.reset(token)


def build_model(
    recipe: ModelRecipe, progress: Progress = no_progress, cancelled: IsCancelled = never_cancelled
) -> "MetaModel":
    """The meta model of a recipe, cached for the session.

    Raises:
        CannotTrace: the model cannot be built.
        Cancelled: the build was cancelled.
    """
    if recipe.meta_model is not None:
        return recipe.meta_model
    from llmsim_magic.capture.meta.isolation import model_lock

    progress(f"building {recipe.name} without weights")
    try:
        with DeferredInterrupt(cancelled), model_lock:
            return session_cache.model(recipe.key, lambda: _build(recipe, progress, cancelled))
    except KeyboardInterrupt:
        if cancelled():
            raise Cancelled(f"{recipe.name}: cancelled while it was built") from None
        raise


def wait_until_idle() -> None:
    """Wait until no thread builds or runs a model, because that sets torch's default dtype."""
    isolation = sys.modules.get("llmsim_magic.capture.meta.isolation")
    if isolation is not None:
        with DeferredInterrupt(), isolation.model_lock:
            pass


def trace_workload(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled = never_cancelled
) -> Trace:
    """The trace of a workload, cached for the session.

    Args:
        recipe: the model.
        workload: phase, batch and context.
        replay: run identical layers only once.
        cancelled: polled during the pass.

    Raises:
        KeyboardInterrupt: the pass was cancelled.
        LlmsimError: the workload cannot be traced.
    """
    from llmsim_magic.capture.meta.isolation import default_dtype
    from llmsim_magic.capture.run import run

    if not _tracing_allowed.get():
        raise RuntimeError(
            f"{recipe.name}: {workload} is not traced yet: call prepare() before displaying"
        )
    meta_model = build_workload_model(recipe)
    question = (workload, replay, default_dtype())
    return session_cache.trace(
        meta_model, question, lambda: run(meta_model, workload, replay=replay, cancelled=cancelled)
    )


def build_workload_model(
    recipe: ModelRecipe,
    progress: Progress = no_progress,
    cancelled: IsCancelled = never_cancelled,
) -> "MetaModel":
    """The meta model of a recipe, which must be a HuggingFace model: its config defines the inputs.

    Raises:
        InvalidValue: not a HuggingFace model.
        CannotTrace: the model cannot be built.
        Cancelled: the build was cancelled.
    """
    from llmsim_magic.capture.inputs.context_length import is_huggingface

    meta_model = build_model(recipe, progress, cancelled)
    if not is_huggingface(meta_model.module):
        raise InvalidValue(
            f"{meta_model.info.class_name} is not a HuggingFace model, so it needs inputs: "
            "in Python, llmsim.trace(module, inputs=(x,)) traces any module"
        )
    return meta_model


def _build(recipe: ModelRecipe, progress: Progress, cancelled: IsCancelled) -> "MetaModel":
    from llmsim_magic.capture.models.meta_model import from_config
    from llmsim_magic.capture.parallel.sharding import sharded

    build = recipe.build
    if recipe.facts is None:
        source = ConfigSource(recipe.name, recipe.config, "config object")
    else:
        facts = replace(recipe.facts, keys=copy.deepcopy(recipe.facts.keys))
        wait = HubWait(progress, cancelled)
        source = load_config(facts, trust_remote_code=build.trust_remote_code, wait=wait)
    if source.adapter is not None and max(build.parallel.tp, build.parallel.ep) > 1:
        raise InvalidValue(
            f"{recipe.name}: tp and ep cannot be applied to an adapter's layers; trace its base "
            "model, or use pp"
        )
    whole = from_config(
        source,
        base=build.base,
        attention=build.attn,
        dtype=build.dtype,
        trust_remote_code=build.trust_remote_code,
    )
    return sharded(whole, build.parallel)


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


def _require_torch() -> None:
    """Import torch and transformers; if one is missing, say how to install it."""
    for package in ("torch", "transformers"):
        try:
            with DeferredInterrupt(insists=False):  # an interrupted import leaves torch broken
                importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
        except Exception as error:  # transformers reads the working folder, which may not exist
            reason = import_problem() or describe(error)
            raise CannotTrace(f"{package} cannot be imported: {reason}") from error
