"""From whatever the user names to a meta_model model, built once and kept for the next question."""

import copy
import importlib
import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsim_magic.capture.models.config_limits import check_sizes
from llmsim_magic.capture.models.resolve import ConfigSource, FoundConfig, find_config, load_config
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import (
    Cancelled,
    CannotTrace,
    InvalidValue,
    describe,
    is_instance,
    safe_str,
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
    """Progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class ModelRecipe:
    """How to come by a model, here or in another process: `key` is equal for equal models."""

    name: str
    key: Hashable
    build: Build
    facts: FoundConfig | None = None
    config: Any = None
    meta_model: "MetaModel | None" = None


def model_recipe(model: Any, build: Build, progress: Progress = no_progress) -> ModelRecipe:
    """The recipe of a hub id, a path, a config or a live module, which is copied at once.

    Raises `UnknownModel` or `CannotTrace`, and `InvalidValue` for what is no model at all or an
    option that a live module cannot take.
    """
    facts = find_config(str(model), refresh=build.refresh) if is_instance(model, str) else None
    progress("importing torch and transformers")
    _require_torch()
    from llmsim_magic.capture.meta.isolation import model_lock
    from llmsim_magic.capture.models.live_model_copy import copy_without_weights
    from llmsim_magic.capture.models.meta_model import is_config, is_module
    from llmsim_magic.capture.parallel.sharding import sharded

    if facts is not None:
        return _of_facts(facts, build)
    if not is_module(model) and not is_config(model):
        legal = "a hub id, a path, a PretrainedConfig or an nn.Module"
        raise InvalidValue.must_be("model", type_name(model), legal)
    name = printable(_name(model))
    if is_module(model):
        _as_it_is(build)
        progress(f"copying {name} without its weights")
        with DeferredInterrupt(), model_lock:
            copied = sharded(copy_without_weights(model, name), build.parallel)
        return ModelRecipe(name, None, build, meta_model=copied)
    try:
        keys, config = model.to_dict(), copy.deepcopy(model)
        content = json.dumps(config, default=_content)
    except Exception as error:
        raise InvalidValue.must_be(f"{name}: config", safe_str(error), "written as JSON") from error
    check_sizes(name, keys)
    return ModelRecipe(name, (type(model), content, name, build), build, config=config)


def _of_facts(facts: FoundConfig, build: Build) -> ModelRecipe:
    key = (json.dumps(facts.keys), facts.name, facts.origin, facts.location, build)
    return ModelRecipe(facts.name, key, build, facts=facts)


def parallel_recipe(recipe: ModelRecipe, model: Any, parallel: Parallel) -> ModelRecipe:
    """The recipe of the same model spread otherwise; where its config came from is not asked."""
    build = replace(recipe.build, parallel=parallel)
    return model_recipe(model, build) if recipe.facts is None else _of_facts(recipe.facts, build)


@contextmanager
def no_tracing() -> Iterator[None]:
    """While this is open a trace in this context is a bug: displaying only shows what is there."""
    token = _tracing_allowed.set(False)
    try:
        yield
    finally:
        _tracing_allowed.reset(token)


def build_model(
    recipe: ModelRecipe, progress: Progress = no_progress, cancelled: IsCancelled = never_cancelled
) -> "MetaModel":
    """The model of a recipe, kept for the next question.

    Raises `CannotTrace` where it cannot be built, `Cancelled` where that was cancelled.
    """
    if recipe.meta_model is not None:
        return recipe.meta_model
    from llmsim_magic.capture.meta.isolation import model_lock

    progress(f"building {recipe.name} without weights")
    try:
        with DeferredInterrupt(cancelled), model_lock:
            return session_cache.model(recipe.key, lambda: _build(recipe))
    except KeyboardInterrupt:
        if cancelled():
            raise Cancelled(f"{recipe.name}: cancelled while it was built") from None
        raise


def wait_until_idle() -> None:
    """Wait while another thread builds or runs a model: a build sets torch's default dtype."""
    isolation = sys.modules.get("llmsim_magic.capture.meta.isolation")
    if isolation is not None:
        with DeferredInterrupt(), isolation.model_lock:
            pass


def trace_workload(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled = never_cancelled
) -> Trace:
    """The trace of a workload, remembered; with `replay` layers that are alike run once.

    Raises `KeyboardInterrupt` once it is cancelled.
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
    """The model of a recipe, which must say what it reads: workloads are made from its config.

    Raises:
        InvalidValue: a module that is no HuggingFace model.
        CannotTrace: it cannot be built.
        Cancelled: it was cancelled while it was built.
    """
    from llmsim_magic.capture.inputs.context_length import is_huggingface

    meta_model = build_model(recipe, progress, cancelled)
    if not is_huggingface(meta_model.module):
        raise InvalidValue(
            f"{meta_model.info.class_name} is not a HuggingFace model, so it needs inputs: "
            "in Python, llmsim.trace(module, inputs=(x,)) traces any module"
        )
    return meta_model


def _build(recipe: ModelRecipe) -> "MetaModel":
    from llmsim_magic.capture.models.meta_model import from_config
    from llmsim_magic.capture.parallel.sharding import sharded

    build = recipe.build
    if recipe.facts is None:
        source = ConfigSource(recipe.name, recipe.config, "config object")
    else:
        facts = replace(recipe.facts, keys=copy.deepcopy(recipe.facts.keys))
        source = load_config(facts, trust_remote_code=build.trust_remote_code)
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
            raise InvalidValue.must_be(
                option,
                value,
                "an option for a live module, which is traced as it is: name a config",
            )


def _require_torch() -> None:
    """Say how to get torch's small CPU build where it is missing."""
    for package in ("torch", "transformers"):
        try:
            with DeferredInterrupt(insists=False):  # torch does not survive half an import
                importlib.import_module(package)
        except ImportError as error:
            raise CannotTrace(
                f"{error.name} is not installed: pip install torch --index-url "
                "https://download.pytorch.org/whl/cpu && pip install transformers"
            ) from error
        except Exception as error:  # as where the working folder is gone, which transformers reads
            raise CannotTrace(f"{package} cannot be imported: {describe(error)}") from error
