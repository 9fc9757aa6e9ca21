"""The trace of a workload, and the limits of a model: from the session, the disk or a pass."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from llmsim_magic.records.errors import Cancelled, LlmsimError
from llmsim_magic.records.trace.context_limits import ContextLimits
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.cache.cache_folder import disk_cache
from llmsim_magic.simulate.cache.environment import code_in_use
from llmsim_magic.simulate.cache.kept_model import KeptModel, Reach
from llmsim_magic.simulate.cache.session_cache import Question
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.frameworks import are_imported
from llmsim_magic.simulate.models.recipes import ModelRecipe, Progress, no_progress

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

Tracer = Callable[[Workload], Trace]
_tracing_allowed: ContextVar[bool] = ContextVar("tracing_allowed", default=True)
_kept: "WeakKeyDictionary[ModelRecipe, KeptModel]" = WeakKeyDictionary()


@contextmanager
def no_tracing() -> Iterator[None]:
    """Forbid tracing in this context: displaying a report must not start a trace."""
    token = _tracing_allowed.set(False)
    try:
        yield
    finally:
        _tracing_allowed.reset(token)


def trace_workload(
    recipe: ModelRecipe, workload: Workload, replay: bool, cancelled: IsCancelled = never_cancelled
) -> Trace:
    """The trace of a workload, as the session or the disk has it, or else of a pass.

    Args:
        recipe: the model.
        workload: phase, batch and context.
        replay: run identical layers only once.
        cancelled: polled during the pass.

    Raises:
        KeyboardInterrupt: the pass was cancelled.
        LlmsimError: the workload cannot be traced.
    """
    if not _tracing_allowed.get():
        raise RuntimeError(
            f"{recipe.name}: {workload} is not traced yet: call prepare() before displaying"
        )
    question = Question(workload, replay, _default_dtype())
    if recipe.meta_model is not None:
        live = build_workload_model(recipe)
        return session_cache.live_trace(live, question, partial(_run, live, question, cancelled))
    found = partial(_kept_or_traced, recipe, question, cancelled)
    return session_cache.trace(recipe.key, question, found)


def context_limits(
    recipe: ModelRecipe, progress: Progress = no_progress, cancelled: IsCancelled = never_cancelled
) -> ContextLimits:
    """The longest contexts of a HuggingFace model.

    Raises:
        InvalidValue: not a HuggingFace model, or options that it does not take.
        CannotTrace: the model cannot be built.
        Cancelled: the build was cancelled.
    """
    if recipe.meta_model is not None:
        return _limits_of(build_workload_model(recipe))
    found = partial(_kept_or_built_limits, recipe, progress, cancelled)
    return session_cache.limits(recipe.key, found)


def longest_that_runs(recipe: ModelRecipe, tokens: int) -> int | None:
    """The number of tokens, less than `tokens`, beyond which the model fails; None if they run.

    Raises:
        LlmsimError: the model cannot be built.
    """
    kept = _kept_model(recipe)
    reach = kept.reach(tokens) if kept is not None else None
    if reach is None:
        meta_model = build_workload_model(recipe)
        reach = Reach(meta_model.longest_that_runs(tokens))
        if kept is not None and _runs_installed_code():
            kept.keep_reach(tokens, reach, _code_files(meta_model))
    return reach.longest


def _kept_or_traced(recipe: ModelRecipe, question: Question, cancelled: IsCancelled) -> Trace:
    kept = _kept_model(recipe)
    found = kept.trace(question) if kept is not None else None
    if found is not None:
        return found
    meta_model = build_workload_model(recipe)
    try:
        trace = _run(meta_model, question, cancelled)
    except LlmsimError as error:
        if kept is not None and _runs_installed_code():
            kept.keep_error(str(question), error, _code_files(meta_model))
        raise
    if kept is not None and _runs_installed_code():
        kept.keep_trace(question, trace, _code_files(meta_model))
    return trace


def _run(meta_model: "MetaModel", question: Question, cancelled: IsCancelled) -> Trace:
    from llmsim_magic.capture.run import run

    return run(meta_model, question.workload, replay=question.replay, cancelled=cancelled)


def _kept_or_built_limits(
    recipe: ModelRecipe, progress: Progress, cancelled: IsCancelled
) -> ContextLimits:
    kept = _kept_model(recipe)
    found = kept.limits() if kept is not None else None
    if found is not None:
        return found
    try:
        meta_model = build_workload_model(recipe, progress, cancelled)
    except Cancelled:
        raise
    except LlmsimError as error:
        if kept is not None and are_imported() and _runs_installed_code():
            kept.keep_error("model", error, _code_files(None))
        raise
    limits = _limits_of(meta_model)
    if kept is not None and _runs_installed_code():
        kept.keep_limits(limits, _code_files(meta_model))
    return limits


def _limits_of(meta_model: "MetaModel") -> ContextLimits:
    return ContextLimits(meta_model.longest_context, meta_model.declared_context)


def _kept_model(recipe: ModelRecipe) -> KeptModel | None:
    """What the disk keeps of a model; None if nothing of it may be read or kept."""
    cache = disk_cache()
    if cache is None or recipe.identity is None or not _runs_installed_code():
        return None
    known = _kept.get(recipe)
    if known is None or known.cache is not cache:
        origin = "config object" if recipe.facts is None else recipe.facts.origin
        notes = () if recipe.facts is None else recipe.facts.notes
        reads = not recipe.build.refresh
        known = KeptModel(cache, recipe.identity, code_in_use(), origin, notes, reads)
        _kept[recipe] = known
    return known


def _runs_installed_code() -> bool:
    """Whether a model that this process builds runs the code that is installed, unchanged."""
    if not are_imported():
        return True
    from llmsim_magic.capture.meta.changed_code import changed_code

    return changed_code() is None


def _code_files(meta_model: "MetaModel | None") -> tuple[str, ...]:
    from llmsim_magic.capture.models.code_files import code_files

    return code_files(None if meta_model is None else meta_model.module)


def _default_dtype() -> str:
    """The name of torch's default dtype, which is float32 in a process without torch."""
    if "torch" not in sys.modules:
        return "float32"
    from llmsim_magic.capture.meta.isolation import default_dtype

    return default_dtype()
