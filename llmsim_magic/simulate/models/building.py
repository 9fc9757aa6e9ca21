"""Build the meta model of a recipe, once per session."""

import copy
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from llmsim_magic.capture.configs.resolve import ConfigSource, load_config
from llmsim_magic.capture.hub.request import HubWait
from llmsim_magic.records.background_import import is_imported
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import Cancelled, InvalidValue
from llmsim_magic.records.trace.training import MIXED_DTYPE, PRECISION_DTYPES
from llmsim_magic.records.trace.workload import IsCancelled, never_cancelled
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.models.frameworks import require_frameworks
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress, no_progress
from llmsim_magic.simulate.request import Build

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel


def build_model(
    recipe: ModelRecipe, progress: Progress = no_progress, cancelled: IsCancelled = never_cancelled
) -> "MetaModel":
    """The meta model of a recipe, cached for the session.

    Raises:
        CannotTrace: torch or transformers is missing, or the model cannot be built.
        Cancelled: the build was cancelled.
    """
    if recipe.meta_model is not None:
        return recipe.meta_model
    require_frameworks(progress)
    from llmsim_magic.capture.meta.isolation import model_lock

    progress(f"building {recipe.name} without weights")
    try:
        with DeferredInterrupt(cancelled), model_lock:
            return session_cache.model(recipe.key, lambda: _build(recipe, progress, cancelled))
    except KeyboardInterrupt:
        if cancelled():
            raise Cancelled(f"{recipe.name}: cancelled while it was built") from None
        raise


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
    meta_model = build_model(recipe, progress, cancelled)
    from llmsim_magic.capture.inputs.context_length import is_huggingface

    if not is_huggingface(meta_model.module):
        raise InvalidValue(
            f"{meta_model.info.class_name} is not a HuggingFace model, so it needs inputs: "
            "in Python, llmsim.trace(module, inputs=(x,)) traces any module"
        )
    return meta_model


def wait_until_idle() -> None:
    """Wait until no thread builds or runs a model, because that sets torch's default dtype."""
    isolation = sys.modules.get("llmsim_magic.capture.meta.isolation")
    if isolation is not None and is_imported(isolation.__name__):
        with DeferredInterrupt(), isolation.model_lock:
            pass


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
        dtype=_dtype(build),
        trust_remote_code=build.trust_remote_code,
    )
    model = sharded(whole, build.parallel)
    if build.training is None:
        return model
    from llmsim_magic.capture.train.trainable import trainable

    return trainable(model, build.training)


def _dtype(build: Build) -> str | None:
    """The dtype of the weights: as asked for, or that of a training's precision.

    Autocast trains weights in float32, and FSDP2 gathers shards of float32 in what the kernels
    compute in, but those of a model in 4 bits have the dtype of the
    checkpoint before they are quantised, as transformers loads them.
    """
    training = build.training
    if training is None or training.precision is None:
        return build.dtype
    if training.is_mixed:
        return MIXED_DTYPE
    is_as_stored = training.qlora and training.precision == "amp"
    return build.dtype if is_as_stored else PRECISION_DTYPES[training.precision]
