"""Run one workload of a weightless model and return its record."""

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch

from llmsim_magic.capture.inputs import decode_inputs, forward_inputs
from llmsim_magic.capture.inputs.cache_in_output import cache_in_output, saving_encoder_outputs
from llmsim_magic.capture.inputs.context_length import context_note, is_huggingface
from llmsim_magic.capture.inputs.model_inputs import ModelInputs
from llmsim_magic.capture.inputs.signature import parameters
from llmsim_magic.capture.kernels.tensors import dtype_name, held_tensors, named_tensors
from llmsim_magic.capture.meta.call_stack import call_model
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.isolation import isolated, model_lock
from llmsim_magic.capture.meta.partial_evaluation import EndlessLoop, PartialEvaluation
from llmsim_magic.capture.models.live_model_copy import inputs_on_meta
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.record.assemble_operators import assemble_operators
from llmsim_magic.capture.record.dispatch_modes import dispatch_modes
from llmsim_magic.capture.record.recorder import Recorder
from llmsim_magic.capture.replay.replay import Replayer, UnrecordedPass
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotTrace, LlmsimError, NoDecode, describe
from llmsim_magic.records.printable import printable_record
from llmsim_magic.records.trace.trace import CacheSlot, Trace
from llmsim_magic.records.trace.workload import IsCancelled, Workload, never_cancelled

Way = TypeVar("Way")
Result = TypeVar("Result")


@isolated()
def run(
    weightless: MetaModel,
    workload: Workload,
    *,
    replay: bool = True,
    cancelled: IsCancelled = never_cancelled,
) -> Trace:
    """Trace one workload; a decode step runs on the cache that a prefill of `context` built.

    With `replay` one layer of each kind is run, and stands for those that do the same.
    Raises `NoDecode` for decode on a model without cache or state, and `CannotTrace` with the
    cause where its forward needs a value that only weights or data decide. Once `cancelled` says
    so it stops at the next kernel, with a `KeyboardInterrupt`.
    """
    with DeferredInterrupt(cancelled), model_lock, _told(weightless, workload):
        harness, notes = weightless.harness, context_note(weightless.module, workload)
        harness.put_back()  # what a pass changed that went on in another thread before a fork
        left, harness.left = harness.left, None
        one = _Pass(weightless, workload, replay, notes, left)
        if workload.phase == "prefill":
            ways = forward_inputs.prefill_inputs(weightless.module, workload)
            return _first_that_runs(ways, one.recorded)
        return _first_that_runs(decode_inputs.DECODE_INPUT_MAKERS, one.decoded)


def _first_that_runs(ways: Iterable[Way], run: Callable[[Way], Result]) -> Result:
    """The result of the first way to hand over the inputs that the forward can read.

    Raises the error of the likeliest way, which is the first.
    """
    errors: list[Exception] = []
    for way in ways:
        try:
            return run(way)
        except (NoDecode, EndlessLoop):
            raise
        except Exception as error:
            errors.append(error)
    raise errors[0]


@isolated()
def run_with_inputs(
    weightless: MetaModel,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    replay: bool = True,
) -> Trace:
    """Trace a module on inputs of the caller's own.

    Of what is data (floating point) only shapes and dtypes are used; whole numbers and flags,
    such as token ids and sizes, are known.
    """
    on_device, named = inputs_on_meta((args, dict(keywords)))
    first = next((tensor for _, tensor in named_tensors("", (on_device, named))), None)
    batch = first.shape[0] if first is not None and first.dim() else 1
    workload = Workload("forward", max(batch, 1), 0)
    with model_lock, _told(weightless, workload):
        return _Pass(weightless, workload, replay).recorded(ModelInputs(named), on_device)


@dataclass(frozen=True, slots=True)
class _Primed:
    """What a priming pass was given, what it left, and what is to be said of it."""

    keywords: dict[str, Any]
    state: dict[str, Any]
    notes: list[str]
    answers: PartialEvaluation


@dataclass(frozen=True, slots=True)
class _Left:
    """What a recorded prefill left, which a decode step with as many tokens can go on from."""

    batch: int
    context: int
    replay: bool
    primed: _Primed

    def serves(self, asked: "_Pass") -> bool:
        """Whether a priming pass would have been given the same."""
        workload, model = asked.workload, asked.weightless.module
        if (self.batch, self.context, self.replay) != (
            workload.batch,
            workload.context,
            asked.replay,
        ):
            return False
        wanted = next(decode_inputs.priming_inputs(model, workload)).keywords
        mine = self.primed.keywords
        return wanted.keys() == mine.keys() and all(
            map(_same, wanted.values(), (mine[name] for name in wanted))
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and ((one.is_meta and other.is_meta) or torch.equal(one, other))
    return type(one) is type(other) and bool(one == other)


@dataclass(frozen=True, slots=True)
class _Pass:
    """A model and what is asked of it."""

    weightless: MetaModel
    workload: Workload
    replay: bool
    notes: Sequence[str] = ()
    left: _Left | None = None

    def decoded(self, way: decode_inputs.MakeDecodeInputs) -> Trace:
        """A decode step after a priming pass; what that leaves in the model is state as well."""
        with self.weightless.harness.as_it_was():
            is_first = way is decode_inputs.DECODE_INPUT_MAKERS[0]
            primed = self._primed(self.left if is_first else None)
            inputs = way(self.weightless.module, self.workload, primed.state, primed.keywords)
            return self.recorded(
                ModelInputs(inputs.keywords, primed.notes + inputs.notes), before=primed.answers
            )

    def _primed(self, left: _Left | None) -> _Primed:
        """The state after `context` tokens."""
        model, info = self.weightless.module, self.weightless.info
        if left is not None and left.serves(self):
            return left.primed
        primed = _first_that_runs(decode_inputs.priming_inputs(model, self.workload), self._prime)
        if not primed.state:
            raise NoDecode(
                f"{info.name}: decode does not exist for it: "
                f"{info.class_name} keeps no cache from one token to the next"
            )
        return primed

    def _prime(self, inputs: ModelInputs) -> _Primed:
        model, harness = self.weightless.module, self.weightless.harness
        with (
            harness.as_it_was(only_after_errors=True),
            evaluating_partially() as answers,
            saving_encoder_outputs(model) as kept,
            harness.told(UnrecordedPass(self._replayer(answers))),
        ):
            state = cache_in_output(model, call_model(model, (), inputs.keywords))
        return self._as_primed(inputs, state and state | kept, answers)

    def _as_primed(
        self, inputs: ModelInputs, state: dict[str, Any], answers: PartialEvaluation
    ) -> _Primed:
        notes = [*inputs.notes, *(f"before the step: {note}" for note in answers.notes())]
        return _Primed(inputs.keywords, state, notes, answers)

    def _can_go_on(self, state: dict[str, Any]) -> bool:
        """Whether all that a prefill leaves is in the state that it returned."""
        harness, forward = self.weightless.harness, self.weightless.module.forward
        if self.workload.phase != "prefill" or not state or harness.has_changed:
            return False
        return "encoder_outputs" not in parameters(forward)

    def recorded(
        self,
        inputs: ModelInputs,
        args: tuple[Any, ...] = (),
        before: PartialEvaluation | None = None,
    ) -> Trace:
        model, harness = self.weightless.module, self.weightless.harness
        keywords = inputs.keywords
        with harness.as_it_was(), evaluating_partially(before) as answers:
            recorder = Recorder(harness.roles, self._replayer(answers))
            _name_storages(recorder, _by_name(model.forward, args) | keywords)
            with harness.told(recorder), dispatch_modes(recorder):
                output = call_model(model, args, keywords)
        state = cache_in_output(model, output) if is_huggingface(model) else {}
        if self._can_go_on(state):
            primed = self._as_primed(inputs, state, answers)
            harness.left = _Left(self.workload.batch, self.workload.context, self.replay, primed)
        slots = _name_cache(recorder, state)
        results = recorder.table.add_all(_without(output, state))
        record, replays = assemble_operators(recorder, results)
        said = (*self.weightless.notes, *self.notes, *inputs.notes, *answers.notes(), *_unusual())
        return printable_record(
            Trace(
                model=self.weightless.info,
                workload=self.workload,
                modules=harness.modules,
                parameters=harness.parameters,
                recorded=record,
                replays=replays,
                cache=slots,
                notes=tuple(dict.fromkeys(said)),
                versions=dict(_versions()),
            )
        )

    def _replayer(self, answers: PartialEvaluation) -> Replayer | None:
        return Replayer(answers) if self.replay else None


@contextmanager
def _told(weightless: MetaModel, workload: Workload) -> Iterator[None]:
    """Add the model and the workload to whatever its forward raises."""
    try:
        yield
    except LlmsimError:
        raise
    except Exception as error:
        raise CannotTrace(
            f"{weightless.info.name}: {weightless.info.class_name} cannot run {workload} "
            f"without weights: {describe(error)}"
        ) from error


def _by_name(forward: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """What is given by position, under the names that the forward has for it."""
    names = [*parameters(forward)]
    return {
        names[place] if place < len(names) else f"input {place}": value
        for place, value in enumerate(args)
    }


def _name_storages(recorder: Recorder, keywords: dict[str, Any]) -> None:
    for name, tensor in named_tensors("", keywords):
        recorder.table.name(tensor, "input", name.removeprefix("."))
    for key, value in keywords.items():
        for name, tensor in held_tensors(key, value):
            recorder.table.name(tensor, "cache", name)


def _name_cache(recorder: Recorder, state: dict[str, Any]) -> tuple[CacheSlot, ...]:
    """The cache as the pass left it: each tensor it holds once, counters and empty ones aside."""
    slots: dict[int, CacheSlot] = {}
    for key, value in state.items():
        if key == "encoder_outputs":
            continue
        for name, tensor in held_tensors(key, value):
            recorder.table.name(tensor, "cache", name)
            if not tensor.dim() or not tensor.numel():
                continue
            nbytes = tensor.numel() * tensor.element_size()
            slot = CacheSlot(name, tuple(tensor.shape), dtype_name(tensor.dtype), nbytes)
            slots.setdefault(recorder.table.add(tensor), slot)
    return tuple(slots.values())


def _unusual() -> Iterator[str]:
    """What the user set for the whole process, and a run of the model would meet as well."""
    if (dtype := dtype_name(torch.get_default_dtype())) != "float32":
        yield f"torch's default dtype is {dtype} here: tensors made without one have it"


def _without(output: Any, state: dict[str, Any]) -> Any:
    if not isinstance(output, Mapping):
        return output
    return {key: value for key, value in output.items() if key not in state}


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "llmsim-magic")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
