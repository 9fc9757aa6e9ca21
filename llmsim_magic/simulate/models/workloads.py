"""The trace of a workload, and the limits of a model: from the session, the disk or a pass."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from llmsim_magic.analyses.data_parallel.zero import rank_of_step
from llmsim_magic.analyses.formulas.symbolic_trace import SymbolicTrace
from llmsim_magic.records.background_import import is_imported
from llmsim_magic.records.errors import Cancelled, LlmsimError
from llmsim_magic.records.trace.context_limits import ContextLimits
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import MIXED_DTYPE
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.cache import session_cache
from llmsim_magic.simulate.cache.cache_folder import disk_cache
from llmsim_magic.simulate.cache.kept_model import KeptModel, Reach
from llmsim_magic.simulate.cache.session_cache import Question
from llmsim_magic.simulate.models.building import build_workload_model
from llmsim_magic.simulate.models.frameworks import are_imported, code_state, runs_installed_code
from llmsim_magic.simulate.models.recipes import (
    ModelRecipe,
    Progress,
    no_progress,
    with_code_of_now,
)

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

Value = TypeVar("Value")
Tracer = Callable[[Workload], Trace]
_tracing_allowed: ContextVar[bool] = ContextVar("tracing_allowed", default=True)
_files: "WeakKeyDictionary[MetaModel, tuple[int, tuple[str, ...]]]" = WeakKeyDictionary()
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
    question = question_of(workload, replay)
    known = session_cache.known_trace(recipe.owner, question)
    if known is None:
        known = _evaluated_or_kept(recipe, question)
    if known is not None:
        return session_cache.trace(recipe.owner, question, lambda: known)
    recipe = with_code_of_now(recipe)
    run = partial(_traced, recipe, question, cancelled)
    return session_cache.trace(recipe.owner, question, run)


def question_of(workload: Workload, replay: bool) -> Question:
    """What the trace of a workload answers in this process."""
    return Question(workload, replay, _default_dtype())


def is_traced(recipe: ModelRecipe, question: Question) -> bool:
    """Whether the session or the disk has the trace for a question."""
    if session_cache.known_trace(recipe.owner, question) is not None:
        return True
    kept = _kept_model(recipe)
    return kept is not None and kept.has_trace(question)


def derived(recipe: ModelRecipe, workload: Workload, what: str, kind: type[Value]) -> Value | None:
    """What was computed of the trace of a workload, as the disk has it; None if it has it not.

    Args:
        recipe: the model.
        workload: phase, batch and context.
        what: what was computed, with all that it depends on beside the trace.
        kind: its type.
    """
    kept = _kept_model(recipe)
    return None if kept is None else kept.derived(question_of(workload, replay=True), what, kind)


def keep_derived(recipe: ModelRecipe, workload: Workload, what: str, value: object) -> None:
    """Keep on disk what was computed of the trace of a workload, if that is kept too."""
    kept = _kept_model(recipe)
    if kept is not None:
        kept.keep_derived(question_of(workload, replay=True), what, value)


def known_traces(recipe: ModelRecipe, question: Question) -> int:
    """The traces of this session that formulas of the phase of a question would answer."""
    return session_cache.count_traces(recipe.owner, question.kind)


def symbolic_trace(recipe: ModelRecipe, question: Question) -> SymbolicTrace | None:
    """The formulas of the phase of a question, from the session or the disk.

    None if they were not derived; without regions if none hold.
    """
    kind = question.kind
    found = session_cache.symbolic(recipe.owner, kind)
    if found is None:
        kept = _kept_model(recipe)
        found = kept.symbolic(kind) if kept is not None else None
        if found is not None:
            session_cache.keep_symbolic(recipe.owner, kind, found)
    return found


def keep_symbolic_trace(recipe: ModelRecipe, question: Question, found: SymbolicTrace) -> None:
    """Keep the formulas of the phase of a question, in the session and on disk."""
    session_cache.keep_symbolic(recipe.owner, question.kind, found)
    kept = _kept_model(recipe)
    if kept is not None and are_imported() and recipe.code == code_state():
        kept.keep_symbolic(question.kind, found, _code_files(build_workload_model(recipe)))


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
        recipe = with_code_of_now(recipe)
        meta_model, kept = build_workload_model(recipe), _kept_model(recipe)
        reach = Reach(meta_model.longest_that_runs(tokens))
        if kept is not None:
            kept.keep_reach(tokens, reach, _code_files(meta_model))
    return reach.longest


def _evaluated_or_kept(recipe: ModelRecipe, question: Question) -> Trace | None:
    """The trace that formulas of the session, the disk, or formulas on disk give."""
    known = session_cache.symbolic(recipe.owner, question.kind)
    if known is not None and (found := known.evaluate(question.workload)) is not None:
        return found
    kept = _kept_model(recipe)
    if kept is None:
        return None
    if (found := kept.trace(question)) is not None:
        return found
    known = symbolic_trace(recipe, question) if known is None else None
    return None if known is None else known.evaluate(question.workload)


def _traced(recipe: ModelRecipe, question: Question, cancelled: IsCancelled) -> Trace:
    meta_model, kept = build_workload_model(recipe), _kept_model(recipe)
    try:
        trace = _run(meta_model, recipe, question, cancelled)
    except LlmsimError as error:
        if kept is not None:
            kept.keep_error(str(question), error, _code_files(meta_model))
        raise
    if kept is not None:
        kept.keep_trace(question, trace, _code_files(meta_model))
    return trace


def _run(
    meta_model: "MetaModel", recipe: ModelRecipe, question: Question, cancelled: IsCancelled
) -> Trace:
    training = recipe.build.training
    if training is not None:
        from llmsim_magic.capture.train.step import run_step

        is_mixed = training.is_mixed and meta_model.info.dtype == MIXED_DTYPE
        trace = run_step(
            meta_model,
            question.workload,
            replace(training, precision=None) if is_mixed else training,
            replay=question.replay,
            loss=recipe.loss,
            cancelled=cancelled,
        )
        return rank_of_step(replace(trace, training=training), is_mixed=is_mixed)
    from llmsim_magic.capture.run import run

    return run(meta_model, question.workload, replay=question.replay, cancelled=cancelled)


def _kept_or_built_limits(
    recipe: ModelRecipe, progress: Progress, cancelled: IsCancelled
) -> ContextLimits:
    kept = _kept_model(recipe)
    found = kept.limits() if kept is not None else None
    if found is not None:
        return found
    recipe = with_code_of_now(recipe)
    kept = _kept_model(recipe)
    try:
        meta_model = build_workload_model(recipe, progress, cancelled)
    except Cancelled:
        raise
    except LlmsimError as error:
        if kept is not None and are_imported():
            kept.keep_error("model", error, _code_files(None))
        raise
    limits = _limits_of(meta_model)
    if kept is not None:
        kept.keep_limits(limits, _code_files(meta_model))
    return limits


def _limits_of(meta_model: "MetaModel") -> ContextLimits:
    return ContextLimits(meta_model.longest_context, meta_model.declared_context)


def _kept_model(recipe: ModelRecipe) -> KeptModel | None:
    """What the disk keeps of a model; None if nothing of it may be read or kept."""
    cache = disk_cache()
    if cache is None or recipe.identity is None or recipe.code is None:
        return None
    known = _kept.get(recipe)
    if known is None or known.cache is not cache:
        if not runs_installed_code(recipe.code):
            return None
        origin = "config object" if recipe.facts is None else recipe.facts.origin
        notes = () if recipe.facts is None else recipe.facts.notes
        reads = not recipe.build.refresh
        known = KeptModel(cache, recipe.identity, recipe.code.environment, origin, notes, reads)
        _kept[recipe] = known
    return known


def _code_files(meta_model: "MetaModel | None") -> tuple[str, ...]:
    """The files of code that a model depends on; found again when more modules were imported."""
    from llmsim_magic.capture.models.code_files import code_files

    if meta_model is None:
        return code_files(None)
    imported, files = _files.get(meta_model, (0, ()))
    if imported != len(sys.modules):
        files = code_files(meta_model.module)
        _files[meta_model] = len(sys.modules), files
    return files


def _default_dtype() -> str:
    """The name of torch's default dtype, which is float32 in a process without torch."""
    if not is_imported("torch"):
        return "float32"
    from llmsim_magic.capture.meta.isolation import default_dtype

    return default_dtype()
