"""Prime the cache of a decode step: run a prefill, or reuse the cache of the last one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

import torch

from llmsim_magic.capture.inputs.cache_in_output import (
    cache_after,
    saving_encoder_outputs,
    with_empty_cache,
)
from llmsim_magic.capture.inputs.decode_inputs import priming_inputs
from llmsim_magic.capture.kernels.call_stack import call_model
from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.partial_evaluation import EndlessLoop, PartialEvaluation, Progress
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import parameters
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.record.recorder import Recorder
from llmsim_magic.capture.record.replayed_layers import ReadInside
from llmsim_magic.capture.replay.replay import Replayer, UnrecordedPass
from llmsim_magic.records.errors import CannotTrace, NoDecode
from llmsim_magic.records.trace.assumptions import BEFORE_STEP
from llmsim_magic.records.trace.workload import Workload

MAX_CACHED_BYTES = 16 << 20  # of the host; a larger prefill runs again for its decode step
Candidate = TypeVar("Candidate")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimedCache:
    """The inputs of a prefill, the state it returned, its notes and its evaluation.

    `kept` are tensors that it computed from its inputs and left in attributes of modules, by path.
    """

    keywords: dict[str, Any]
    state: dict[str, Any]
    kept: dict[str, torch.Tensor]
    notes: list[str]
    evaluation: PartialEvaluation

    @property
    def is_returned(self) -> bool:
        """Whether the prefill returned a state, beside a cache that it was given."""
        return not self.state.keys() <= self.keywords.keys()

    def host_bytes(self) -> int:
        """Bytes of host memory that it holds: token ids, and storages that stand for a state."""
        tensors = tensors_in((self.keywords, self.state, self.kept))
        storages = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]
        storages += self.evaluation.overwritten()
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@dataclass(frozen=True, slots=True)
class PrefillCache:
    """The cache of a recorded prefill, which a decode step of equal size can reuse."""

    batch: int
    context: int
    replay: bool
    primed: PrimedCache

    def fits(self, meta_model: MetaModel, workload: Workload, *, replay: bool) -> bool:
        """Whether a priming pass of a workload would have the inputs of this prefill.

        Args:
            meta_model: The model that was prefilled.
            workload: The decode step.
            replay: Whether repeated layers are replayed.
        """
        if (self.batch, self.context, self.replay) != (workload.batch, workload.context, replay):
            return False
        wanted = next(priming_inputs(meta_model.module, workload)).keywords
        mine = self.primed.keywords
        return wanted.keys() == mine.keys() and all(
            map(_is_equal, wanted.values(), (mine[name] for name in wanted))
        )


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_spec = one.shape == other.shape and one.dtype == other.dtype
        return same_spec and ((one.is_meta and other.is_meta) or torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)


class FailedAfterForward(CannotTrace):
    """Inputs fit, but what came after the forward failed: other inputs would not help."""


def first_that_runs(
    candidates: Iterable[Candidate], run: Callable[[Candidate, Progress], Result]
) -> Result:
    """Return the result of the first candidate that runs.

    Args:
        candidates: Ways to pass inputs to a forward, the likeliest first.
        run: Runs the forward with one of them and counts how far it comes.

    Raises:
        NoDecode: The model has no decode step.
        EndlessLoop: One line of the model reads values again and again.
        FailedAfterForward: The inputs fit, and what came after the forward failed.
        ReadInside: The inputs fit, but layers were replayed that have to run.
        Exception: No candidate runs; the error is that of the one that came furthest, which the
            forward is most likely to be meant for.
    """
    errors: list[tuple[int, Exception]] = []
    for candidate in candidates:
        progress = Progress()
        try:
            return run(candidate, progress)
        except (NoDecode, EndlessLoop, FailedAfterForward, ReadInside):
            raise
        except Exception as error:
            errors.append((progress.kernels, error))
    raise max(errors, key=itemgetter(0))[1]


def prime_decode_cache(
    meta_model: MetaModel, workload: Workload, cache: PrefillCache | None, *, replay: bool
) -> PrimedCache:
    """Return the model's state after `context` tokens.

    Args:
        meta_model: The model.
        workload: The decode step that will use the state.
        cache: The cache of the last prefill, which is reused if it fits.
        replay: Whether repeated layers are replayed.

    Raises:
        NoDecode: The model keeps no cache or state.
    """
    if cache is not None and cache.fits(meta_model, workload, replay=replay):
        return cache.primed

    def prime(inputs: ModelInputs, progress: Progress) -> PrimedCache:
        return _run_prefill(meta_model, inputs, progress, replay=replay)

    inputs = priming_inputs(meta_model.module, workload)
    primed = first_that_runs(inputs, prime)
    if not primed.state and not primed.kept:
        raise no_decode(meta_model)
    return primed


def no_decode(meta_model: MetaModel) -> NoDecode:
    """The error for a model that keeps no cache or state."""
    info = meta_model.info
    return NoDecode(
        f"{info.name}: decode does not exist for this model, because {info.class_name} keeps "
        "no cache or state from one token to the next; use prefill"
    )


def _run_prefill(
    meta_model: MetaModel, inputs: ModelInputs, progress: Progress, *, replay: bool
) -> PrimedCache:
    """Runs a prefill without recording it; what it changes in the model is kept."""
    model, hooks = meta_model.module, meta_model.hooks
    with (
        hooks.restored(only_after_errors=True),
        evaluating_partially(progress=progress) as evaluation,
        saving_encoder_outputs(model) as saved,
        hooks.reporting_to(UnrecordedPass(Replayer(evaluation) if replay else None)),
    ):
        output = call_model(model, (), inputs.keywords)
    state, kept = cache_after(model, inputs.keywords, output), hooks.kept_tensors()
    if kept:
        hooks.restore()
        given = None if state else with_empty_cache(model, inputs.keywords)
        again = inputs if given is None else ModelInputs(given, inputs.notes)
        return _run_prefill_that_keeps(meta_model, again, progress)
    return primed_cache(inputs, state and state | saved, evaluation, {})


def _run_prefill_that_keeps(
    meta_model: MetaModel, inputs: ModelInputs, progress: Progress
) -> PrimedCache:
    """Run a prefill that leaves tensors in modules; keep those that it computed from its inputs.

    Other tensors are tables that follow from the config. The pass is recorded without replay, so
    that the origin of every tensor is known.
    """
    model, hooks = meta_model.module, meta_model.hooks
    recorder = Recorder(hooks.roles)
    recorder.table.add_all(inputs.keywords)
    with (
        hooks.restored(only_after_errors=True),
        evaluating_partially(progress=progress) as evaluation,
        saving_encoder_outputs(model) as saved,
        hooks.reporting_to(recorder),
        evaluation.reporting_to(recorder),
    ):
        evaluation.on_retry = recorder.drop_function
        output = call_model(model, (), inputs.keywords)
    state = cache_after(model, inputs.keywords, output)
    computed = recorder.storages_computed_from(inputs.keywords)
    kept = {
        name: tensor
        for name, tensor in hooks.kept_tensors().items()
        if recorder.table.storage(tensor) in computed
    }
    return primed_cache(inputs, state and state | saved, evaluation, kept)


def primed_cache(
    inputs: ModelInputs,
    state: dict[str, Any],
    evaluation: PartialEvaluation,
    kept: dict[str, torch.Tensor],
) -> PrimedCache:
    """Return the cache that a prefill leaves, with notes that name the prefill as their origin.

    Args:
        inputs: The inputs of the prefill.
        state: The keywords for the next step that it returned.
        evaluation: What is known and assumed about its values.
        kept: The tensors that it computed from its inputs and left in attributes of modules.
    """
    notes = [*inputs.notes, *(f"{BEFORE_STEP}{note}" for note in evaluation.notes())]
    return PrimedCache(
        keywords=inputs.keywords, state=state, kept=kept, notes=notes, evaluation=evaluation
    )


def is_state_complete(meta_model: MetaModel, workload: Workload, state: dict[str, Any]) -> bool:
    """Whether a decode step can continue from the state that a recorded pass returned.

    Args:
        meta_model: The model, after the pass.
        workload: The workload of the pass.
        state: What the pass returned for the next step.
    """
    if workload.phase != "prefill" or not state or meta_model.hooks.has_changed:
        return False
    return "encoder_outputs" not in parameters(meta_model.module.forward)
