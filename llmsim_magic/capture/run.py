"""Run one workload of a model on `meta` and return its record."""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import torch

from llmsim_magic.capture.inputs import forward_inputs
from llmsim_magic.capture.inputs.cache_in_output import cache_after, with_empty_cache
from llmsim_magic.capture.inputs.context_length import (
    check_context_runs,
    context_note,
    is_huggingface,
)
from llmsim_magic.capture.inputs.decode_inputs import DECODE_INPUT_MAKERS, MakeDecodeInputs
from llmsim_magic.capture.inputs.given_inputs import batch_size
from llmsim_magic.capture.kernels.call_stack import call_model
from llmsim_magic.capture.kernels.failure_reason import failure_reason
from llmsim_magic.capture.kernels.tensors import dtype_name, held_tensors, named_tensors, unrecorded
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.higher_order_operators import computed_share
from llmsim_magic.capture.meta.isolation import isolated, model_lock
from llmsim_magic.capture.meta.partial_evaluation import EndlessLoop, PartialEvaluation, Progress
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import parameters
from llmsim_magic.capture.models.copy_to_meta import inputs_on_meta
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.prime_decode_cache import (
    MAX_CACHED_BYTES,
    PrefillCache,
    first_that_runs,
    is_state_complete,
    no_decode,
    prime_decode_cache,
    primed_cache,
)
from llmsim_magic.capture.record.assemble_operators import assemble_operators
from llmsim_magic.capture.record.inference_kernels import inference_kernel_notes
from llmsim_magic.capture.record.recorder import Recorder
from llmsim_magic.capture.record.replayed_layers import ReadInside
from llmsim_magic.capture.replay.replay import Replayer
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotTrace, LlmsimError
from llmsim_magic.records.printable import is_printable, printable_record
from llmsim_magic.records.trace.assumptions import BEFORE_STEP
from llmsim_magic.records.trace.trace import CacheSlot, Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled


@isolated()
def run(
    meta_model: MetaModel,
    workload: Workload,
    *,
    replay: bool = True,
    cancelled: IsCancelled = never_cancelled,
) -> Trace:
    """Trace one workload; a decode step uses the cache that a prefill of `context` tokens built.

    Args:
        meta_model: The model.
        workload: Phase, batch size and context in tokens.
        replay: Run one layer of each kind and replay it for layers that do the same.
        cancelled: Polled at each kernel; the pass stops once it returns True.

    Returns:
        The record of the pass.

    Raises:
        NoDecode: The workload is a decode step and the model keeps no cache or state.
        CannotTrace: The forward failed, for example because it needs the values of weights.
        KeyboardInterrupt: The pass was cancelled.
    """
    with (
        DeferredInterrupt(cancelled),
        model_lock,
        error_context(meta_model, workload),
    ):
        hooks, notes = meta_model.hooks, context_note(meta_model.module, workload)
        hooks.restore()  # a fork may have copied the model in the middle of another thread's pass
        cache, hooks.prefill_cache = hooks.prefill_cache, None
        one = _Pass(
            meta_model=meta_model, workload=workload, replay=replay, notes=notes, cache=cache
        )
        return one.run()


@isolated()
def run_with_inputs(
    meta_model: MetaModel,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    replay: bool = True,
) -> Trace:
    """Trace a module on given inputs.

    Only shapes and dtypes of floating-point inputs are used; integers and booleans, such as token
    ids and sizes, keep their values.

    Args:
        meta_model: The module.
        args: Its positional arguments.
        keywords: Its keyword arguments.
        replay: Run one layer of each kind and replay it for layers that do the same.

    Returns:
        The record of the pass.

    Raises:
        CannotTrace: The forward failed.
    """
    on_device, named = inputs_on_meta((args, dict(keywords)))
    workload = Workload("forward", batch_size((*on_device, *named.values())), 0)
    with model_lock, error_context(meta_model, workload):
        one = _Pass(meta_model=meta_model, workload=workload, replay=replay)
        try:
            return one.trace(ModelInputs(named), Progress(), on_device)
        except ReadInside:
            on_device, named = inputs_on_meta((args, dict(keywords)))
            return replace(one, replay=False).trace(ModelInputs(named), Progress(), on_device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """A model, the workload to trace, notes for the report, and the cache of the last prefill."""

    meta_model: MetaModel
    workload: Workload
    replay: bool
    notes: Sequence[str] = ()
    cache: PrefillCache | None = None

    def run(self) -> Trace:
        """Traces the workload; without replays if something reads inside a replayed layer."""
        if self.replay:
            with suppress(ReadInside):
                return self._first_that_runs()
        return replace(self, replay=False, cache=None)._first_that_runs()

    def _first_that_runs(self) -> Trace:
        if self.workload.phase == "decode":
            return first_that_runs(DECODE_INPUT_MAKERS, self.trace_decode)
        candidates = forward_inputs.prefill_inputs(self.meta_model.module, self.workload)
        return first_that_runs(candidates, self.trace)

    def trace_decode(self, make_inputs: MakeDecodeInputs, progress: Progress) -> Trace:
        """Traces a decode step; changes that priming makes in the model are part of its state."""
        with self.meta_model.hooks.restored():
            is_first = make_inputs is DECODE_INPUT_MAKERS[0]
            cache = self.cache if is_first else None
            primed = prime_decode_cache(self.meta_model, self.workload, cache, replay=self.replay)
            inputs = make_inputs(
                self.meta_model.module, self.workload, primed.state, primed.keywords
            )
            step = self.trace(
                ModelInputs(inputs.keywords, primed.notes + inputs.notes),
                progress,
                before=primed.evaluation,
                kept=primed.kept,
            )
        if primed.kept and not self.meta_model.hooks.states and not primed.is_returned:
            raise no_decode(self.meta_model)
        return step

    def trace(
        self,
        inputs: ModelInputs,
        progress: Progress,
        args: tuple[Any, ...] = (),
        before: PartialEvaluation | None = None,
        kept: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> Trace:
        """Traces one call of the model.

        `before` is the evaluation of the priming pass, `kept` what it left in modules; a layer that
        may read it is not replayed.

        Raises:
            ReadInside: Layers were replayed that have to run.
        """
        model, hooks = self.meta_model.module, self.meta_model.hooks
        keywords, left = inputs.keywords, dict[str, torch.Tensor]()
        with hooks.restored(), evaluating_partially(before, progress) as evaluation:
            replayer = Replayer(evaluation) if self.replay and not kept else None
            recorder = Recorder(hooks.roles, replayer)
            evaluation.on_retry = recorder.drop_function
            recorder.computed_share = partial(computed_share, evaluation)
            with unrecorded():
                _name_storages(recorder, by_name(model.forward, args) | keywords, kept)
            with hooks.reporting_to(recorder), evaluation.reporting_to(recorder):
                output = call_model(model, args, keywords)
            if is_huggingface(model):
                left = hooks.kept_tensors()
        state = cache_after(model, keywords, output) if is_huggingface(model) else {}
        is_prefill = self.workload.phase == "prefill"
        if left and not state and is_prefill:
            given = with_empty_cache(model, keywords)
            if given is not None:
                return self.trace(ModelInputs(given, inputs.notes), progress)
        if left and is_prefill and hooks.states is None:
            hooks.states = self._states_that_decode_reads()
        if is_state_complete(self.meta_model, self.workload, state):
            primed = primed_cache(inputs, state, evaluation, left)
            if primed.host_bytes() <= MAX_CACHED_BYTES:
                size = self.workload.batch, self.workload.context
                hooks.prefill_cache = PrefillCache(*size, self.replay, primed)
        if kept:
            hooks.states = _read_by_kernels(recorder, kept)
        left = {name: tensor for name, tensor in left.items() if name in (hooks.states or ())}
        slots = _name_cache(recorder, state, left)
        results = recorder.table.add_all(_without(output, state))
        if recorder.is_read_inside((*results, *slots)):
            raise ReadInside
        record, replays = assemble_operators(recorder, results)
        assumed = evaluation.notes()
        in_both = {f"{BEFORE_STEP}{note}" for note in assumed}
        notes = (*self.meta_model.notes, *self.notes)
        notes = (*notes, *(note for note in inputs.notes if note not in in_both))
        notes = (*notes, *inference_kernel_notes(recorder.calls, recorder.table.tensors))
        notes = (*notes, *assumed, *process_notes())
        trace = Trace(
            model=self.meta_model.info,
            workload=self.workload,
            modules=hooks.modules,
            parameters=hooks.parameters,
            recorded=record,
            replays=replays,
            cache=tuple(slots.values()),
            notes=tuple(dict.fromkeys(notes)),
            versions=dict(versions()),
        )
        # A replay names modules only, and the calls in it are in the record.
        of_pass = replace(trace, modules=(), parameters=(), replays=())
        if hooks.are_names_printable and is_printable(of_pass):
            return trace
        return printable_record(trace)

    def _states_that_decode_reads(self) -> frozenset[str]:
        """Names of the tensors that a prefill leaves in modules and a short decode step reads."""
        step = replace(self, workload=Workload("decode", 1, 8), cache=None)
        with suppress(Exception):  # a model without a decode step
            step.run()
        return self.meta_model.hooks.states or frozenset()


_OF_LENGTH = (IndexError, ValueError, RuntimeError)  # what a context beyond a table raises


@contextmanager
def error_context(meta_model: MetaModel, workload: Workload) -> Iterator[None]:
    """Adds the model and the workload to any error that its forward raises."""
    try:
        yield
    except LlmsimError:
        raise
    except Exception as error:
        is_loop = isinstance(error, EndlessLoop)  # its message says more
        if workload.context and isinstance(error, _OF_LENGTH) and not is_loop:
            check_context_runs(meta_model.module, workload, meta_model.info.name)
        raise CannotTrace(
            f"{meta_model.info.name}: {meta_model.info.class_name} cannot run {workload} "
            f"without weights: {failure_reason(error)}"
        ) from error


def by_name(forward: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments by their names in the forward."""
    names = [*parameters(forward)]
    return {
        names[place] if place < len(names) else f"input {place}": value
        for place, value in enumerate(args)
    }


def _name_storages(
    recorder: Recorder, keywords: dict[str, Any], kept: Mapping[str, torch.Tensor]
) -> None:
    for name, tensor in named_tensors("", keywords):
        recorder.table.name(tensor, "input", name.removeprefix("."))
    for key, value in keywords.items():
        for name, tensor in held_tensors(key, value):
            recorder.table.name(tensor, "cache", name)
    for name, tensor in kept.items():
        recorder.table.name(tensor, "cache", name)


def _read_by_kernels(recorder: Recorder, kept: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The names of those tensors that a kernel of the pass reads."""
    table = recorder.table
    read = {
        table.tensors[number].storage
        for call in recorder.kernels
        if not call.kernel.is_view
        for number in call.kernel.inputs
    }
    return frozenset(name for name, tensor in kept.items() if table.storage(tensor) in read)


def _name_cache(
    recorder: Recorder, state: dict[str, Any], kept: Mapping[str, torch.Tensor]
) -> dict[int, CacheSlot]:
    """The tensors of the cache after the pass, by number; no scalars or empty tensors."""
    slots: dict[int, CacheSlot] = {}
    held = [
        found
        for key, value in (*state.items(), *kept.items())
        if key != "encoder_outputs"
        for found in held_tensors(key, value)
    ]
    for name, tensor in held:
        recorder.table.name(tensor, "cache", name)
        if not tensor.dim() or not tensor.numel():
            continue
        nbytes = tensor.numel() * tensor.element_size()
        slot = CacheSlot(name, tuple(tensor.shape), dtype_name(tensor.dtype), nbytes)
        slots.setdefault(recorder.table.add(tensor), slot)
    return slots


def process_notes() -> Iterator[str]:
    """Notes on settings of the process that also affect a real run of the model."""
    if (dtype := dtype_name(torch.get_default_dtype())) != "float32":
        yield f"torch's default dtype is {dtype}: tensors created without a dtype have it"


def _without(output: Any, state: dict[str, Any]) -> Any:
    if not isinstance(output, Mapping):
        return output
    return {key: value for key, value in output.items() if key not in state}


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    names = ("torch", "transformers", "llmsim-magic")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
