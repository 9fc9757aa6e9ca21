"""Run one workload of a weightless model and return its record."""

import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llmsim_magic.capture.answers import Answers, answering
from llmsim_magic.capture.inputs import passes
from llmsim_magic.capture.inputs.lengths import context_note, is_huggingface
from llmsim_magic.capture.inputs.passes import Inputs
from llmsim_magic.capture.operators import assemble
from llmsim_magic.capture.restore import as_it_was
from llmsim_magic.capture.tensors import dtype_name, held_tensors, named_tensors
from llmsim_magic.capture.tracer import Recorder, listening
from llmsim_magic.capture.weightless import Weightless, on_meta, reason
from llmsim_magic.records.errors import CannotTrace, LlmsimError, NoDecode
from llmsim_magic.records.trace import CacheSlot, Module, Parameter, Scalar, Trace
from llmsim_magic.records.workload import Workload

Way = TypeVar("Way")
Result = TypeVar("Result")


def run(weightless: Weightless, workload: Workload) -> Trace:
    """Trace one workload; a decode step runs on the cache that a prefill of `context` built.

    Raises `NoDecode` for decode on a model without cache or state, and `CannotTrace` with the
    cause where its forward needs a value that only weights or data decide.
    """
    model = weightless.module
    notes = [*weightless.notes, *context_note(model, workload)]
    with _told(weightless, workload):
        if workload.phase == "prefill":
            return _first_that_runs(
                passes.prefill_inputs(model, workload),
                lambda inputs: _record(weightless, workload, inputs, notes),
            )
        return _first_that_runs(
            passes.DECODE_WAYS, lambda way: _decoded(weightless, workload, way, notes)
        )


def _decoded(
    weightless: Weightless, workload: Workload, way: passes.DecodeWay, notes: list[str]
) -> Trace:
    """A decode step after a priming pass; what that leaves in the model itself is state as well."""
    with as_it_was(weightless.module):
        primed = _primed(weightless, workload)
        inputs = way(weightless.module, workload, primed.state, primed.keywords)
        said = [*notes, *primed.notes]
        return _record(weightless, workload, inputs, said, before=primed.answers)


def _first_that_runs(ways: Iterable[Way], run: Callable[[Way], Result]) -> Result:
    """The result of the first way to hand over the inputs that the forward can read.

    Raises the error of the likeliest way, which is the first.
    """
    errors: list[Exception] = []
    for way in ways:
        try:
            return run(way)
        except NoDecode:
            raise
        except Exception as error:
            errors.append(error)
    raise errors[0]


def run_given(weightless: Weightless, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Trace:
    """Trace a module on inputs of the caller's own.

    Of what is data (floating point) only shapes and dtypes are used; whole numbers and flags,
    such as token ids and sizes, are known.
    """
    first = next((tensor for _, tensor in named_tensors("", (args, dict(keywords)))), None)
    batch = first.shape[0] if first is not None and first.dim() else 1
    workload = Workload("forward", max(batch, 1), 0)
    on_device, named = on_meta((args, dict(keywords)))
    return _record(weightless, workload, Inputs(named), list(weightless.notes), on_device)


@dataclass(frozen=True, slots=True)
class _Primed:
    """What a priming pass was given, what it left, and what is to be said of it."""

    keywords: dict[str, Any]
    state: dict[str, Any]
    notes: list[str]
    answers: Answers


def _primed(weightless: Weightless, workload: Workload) -> _Primed:
    """The state after `context` tokens."""
    model = weightless.module

    def prime(inputs: Inputs) -> _Primed:
        with (
            as_it_was(model, only_after_errors=True),
            answering() as answers,
            passes.keeping_encoder_outputs(model) as kept,
        ):
            state = passes.state_of(model, model(**inputs.keywords))
        notes = [*inputs.notes, *(f"before the step: {note}" for note in answers.notes())]
        return _Primed(inputs.keywords, state and state | kept, notes, answers)

    primed = _first_that_runs(passes.priming_inputs(model, workload), prime)
    if not primed.state:
        raise NoDecode(
            f"{weightless.info.name}: decode does not exist for it: "
            f"{weightless.info.class_name} keeps no cache from one token to the next"
        )
    return primed


def _record(
    weightless: Weightless,
    workload: Workload,
    inputs: Inputs,
    notes: list[str],
    args: tuple[Any, ...] = (),
    before: Answers | None = None,
) -> Trace:
    model = weightless.module
    recorder = Recorder()
    keywords = inputs.keywords
    _name_storages(recorder, model, args, keywords)
    with (
        _told(weightless, workload),
        as_it_was(model),
        answering(before) as answers,
        listening(recorder, model),
    ):
        output = model(*args, **keywords)
    state = passes.state_of(model, output) if is_huggingface(model) else {}
    slots = _name_cache(recorder, state)
    results = recorder.table.add_all(_without(output, state))
    operators, kernels = assemble(recorder, results)
    return Trace(
        model=weightless.info,
        workload=workload,
        modules=_modules(recorder, model),
        parameters=_parameters(model),
        storages=recorder.table.storages(),
        tensors=tuple(recorder.table.tensors),
        kernels=kernels,
        operators=operators,
        results=results,
        cache=slots,
        notes=tuple(dict.fromkeys((*notes, *inputs.notes, *answers.notes()))),
        versions=_versions(),
    )


@contextmanager
def _told(weightless: Weightless, workload: Workload) -> Iterator[None]:
    """Add the model and the workload to whatever its forward raises."""
    try:
        yield
    except LlmsimError:
        raise
    except Exception as error:
        raise CannotTrace(
            f"{weightless.info.name}: {weightless.info.class_name} cannot run {workload} "
            f"without weights: {reason(error)}"
        ) from error


def _name_storages(
    recorder: Recorder, model: torch.nn.Module, args: Any, keywords: dict[str, Any]
) -> None:
    for name, parameter in model.named_parameters():
        recorder.table.name(parameter, "parameter", name)
    for name, buffer in model.named_buffers():
        recorder.table.name(buffer, "buffer", name)
    for name, tensor in named_tensors("", (args, keywords)):
        recorder.table.name(tensor, "input", name.removeprefix(".1.").removeprefix("."))
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


def _without(output: Any, state: dict[str, Any]) -> Any:
    if not isinstance(output, Mapping):
        return output
    return {key: value for key, value in output.items() if key not in state}


def _modules(recorder: Recorder, model: torch.nn.Module) -> tuple[Module, ...]:
    found = []
    for path, module in model.named_modules():
        calls = recorder.calls.get(path, [])
        found.append(
            Module(
                path,
                type(module).__name__,
                isinstance(module, torch.nn.ModuleList),
                len(calls),
                _attributes(module),
                calls[0].inputs if calls else (),
                calls[0].outputs if calls else (),
            )
        )
    return tuple(found)


def _attributes(module: torch.nn.Module) -> dict[str, Scalar]:
    """The module's own numbers, flags and words: `in_features`, `eps`, `layer_idx`."""
    return {
        key: _scalar(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, (int, float, str))
    }


def _scalar(value: float | str) -> Scalar:
    """The value as a plain type that JSON has; an infinite one in words."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def _parameters(model: torch.nn.Module) -> tuple[Parameter, ...]:
    """Every name of every parameter and buffer, shared ones under each of theirs."""
    first: dict[int, str] = {}
    found = []
    for is_buffer, named in (
        (False, model.named_parameters(remove_duplicate=False)),
        (True, model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            known = first.setdefault(id(tensor), name)
            found.append(
                Parameter(
                    name,
                    name.rpartition(".")[0],
                    tuple(tensor.shape),
                    dtype_name(tensor.dtype),
                    tensor.element_size(),
                    tensor.requires_grad,
                    is_buffer,
                    None if known == name else known,
                )
            )
    return tuple(found)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "llmsim-magic")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
