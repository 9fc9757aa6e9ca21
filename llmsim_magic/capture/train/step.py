"""Run one training step of a model on `meta` and return its record."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward, saved_tensors_hooks

from llmsim_magic.capture.inputs.given_inputs import batch_size
from llmsim_magic.capture.kernels.call_stack import call_model
from llmsim_magic.capture.kernels.failure_reason import failure_reason
from llmsim_magic.capture.kernels.tensors import named_tensors, unrecorded
from llmsim_magic.capture.meta.evaluation_modes import evaluating_partially
from llmsim_magic.capture.meta.isolation import isolated, model_lock
from llmsim_magic.capture.meta.partial_evaluation import EndlessLoop, PartialEvaluation, Progress
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.models.copy_to_meta import inputs_on_meta
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.optimizers.host_values import take_step
from llmsim_magic.capture.optimizers.optimizers import embedding_parameters, make_optimizer
from llmsim_magic.capture.optimizers.published_optimizers import is_paged
from llmsim_magic.capture.prime_decode_cache import FailedAfterForward, first_that_runs
from llmsim_magic.capture.record.assemble_operators import (
    assemble_operators,
    with_makers_of_views,
)
from llmsim_magic.capture.run import by_name, error_context, process_notes, versions
from llmsim_magic.capture.train.layer_replay import UnequalBackward
from llmsim_magic.capture.train.library_warnings import without_library_warnings
from llmsim_magic.capture.train.loss import LossFunction, failed_loss, loss_of, training_inputs
from llmsim_magic.capture.train.packing import packed
from llmsim_magic.capture.train.replaying_recorder import ReplayingRecorder
from llmsim_magic.capture.train.step_recorder import StepRecorder, unpacked
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt
from llmsim_magic.records.errors import CannotTrace, LlmsimError
from llmsim_magic.records.printable import printable_record
from llmsim_magic.records.trace.optimizers import optimizer_notes
from llmsim_magic.records.trace.recorded import Role
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.training import Training
from llmsim_magic.records.trace.unroll import unroll
from llmsim_magic.records.trace.workload import TRAIN, IsCancelled, Workload, never_cancelled


@isolated()
def run_step(
    meta_model: MetaModel,
    workload: Workload,
    training: Training,
    *,
    loss: LossFunction | None = None,
    replay: bool = True,
    cancelled: IsCancelled = never_cancelled,
) -> Trace:
    """Trace one optimizer step in its steady state: the optimizer's states exist already.

    With accumulation, the forward and backward are those of the last micro-batch, which adds its
    gradients to those of the others.

    Args:
        meta_model: The model in training mode.
        workload: Phase `train`, sequences of the step and their tokens.
        training: How the step runs.
        loss: Computes the loss of the output; None for the model's own.
        replay: Run two layers of each kind and replay them for layers that do the same.
        cancelled: Polled at each kernel; the step stops once it returns True.

    Returns:
        The record of the step.

    Raises:
        CannotTrace: A pass failed, or the model has no loss.
        InvalidValue: The batch cannot be divided into the micro-batches.
        KeyboardInterrupt: The step was cancelled.
    """
    micro = replace(workload, batch=training.micro_batch(workload.batch))
    with (
        DeferredInterrupt(cancelled),
        model_lock,
        error_context(meta_model, workload),
        without_library_warnings(),
    ):
        meta_model.hooks.restore()
        step = _Step(
            meta_model=meta_model, workload=workload, training=training, loss=loss, replay=replay
        )
        candidates = training_inputs(meta_model.module, micro, loss)
        if training.packed:
            candidates = packed(meta_model.module, candidates)
        try:
            return first_that_runs(candidates, step.trace)
        except (LlmsimError, EndlessLoop):
            raise
        except Exception as error:
            failed = None if loss is not None else failed_loss(meta_model.module, micro, error)
            raise failed or error from error


@isolated()
def run_step_with_inputs(
    meta_model: MetaModel,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    training: Training,
    *,
    loss: LossFunction | None = None,
    replay: bool = True,
) -> Trace:
    """Trace one optimizer step of a module on given inputs.

    Args:
        meta_model: The module in training mode.
        args: Its positional arguments; one that requires a gradient gets it.
        keywords: Its keyword arguments.
        training: How the step runs.
        loss: Computes the loss of the output; None if the module returns it.
        replay: Run two layers of each kind and replay them for layers that do the same.

    Returns:
        The record of the step.

    Raises:
        CannotTrace: A pass failed, or there is no loss.
    """
    on_device, named = inputs_on_meta((args, dict(keywords)), with_gradients=True)
    workload = Workload(TRAIN, batch_size((*on_device, *named.values())), 0)
    with (
        DeferredInterrupt(),
        model_lock,
        error_context(meta_model, workload),
        without_library_warnings(),
    ):
        meta_model.hooks.restore()
        step = _Step(
            meta_model=meta_model,
            workload=workload,
            training=training,
            loss=loss,
            replay=replay,
            args=on_device,
        )
        return step.trace(ModelInputs(named), Progress())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    meta_model: MetaModel
    workload: Workload
    training: Training
    loss: LossFunction | None
    replay: bool
    args: tuple[Any, ...] = ()

    def trace(self, inputs: ModelInputs, progress: Progress) -> Trace:
        """Traces a step on inputs of a micro-batch; without replays if layers are not equal.

        A backward may also fail because of them: a layer that is recomputed as another ran.
        """
        if self.replay:
            with suppress(UnequalBackward, FailedAfterForward):
                return self._traced(inputs, progress)
        return replace(self, replay=False)._traced(inputs, progress)

    def _traced(self, inputs: ModelInputs, progress: Progress) -> Trace:
        hooks = self.meta_model.hooks
        with (
            hooks.restored(),
            _gradients_dropped(self.meta_model.module),
            _without_collector(),
            evaluating_partially(progress=progress, with_gradients=True) as evaluation,
        ):
            recorder = (
                ReplayingRecorder(hooks.roles, evaluation, self.meta_model.module)
                if self.replay
                else StepRecorder(hooks.roles)
            )
            evaluation.on_retry = recorder.drop_function
            with unrecorded():
                named = self._named_inputs(inputs.keywords)
                for name, tensor in named.items():
                    recorder.table.name(tensor, "input", name)
            self._run(recorder, evaluation, inputs.keywords)
            recorder.finish()
        record = with_makers_of_views(unroll(*assemble_operators(recorder, ())))
        notes = (
            *self.meta_model.notes,
            *inputs.notes,
            *optimizer_notes(self.training.optimizer),
            *evaluation.notes(),
            *process_notes(),
        )
        return printable_record(
            Trace(
                model=self.meta_model.info,
                workload=self.workload,
                modules=hooks.modules,
                parameters=hooks.parameters,
                recorded=record,
                replays=(),
                cache=(),
                notes=tuple(dict.fromkeys(notes)),
                versions=dict(versions()),
                training=self.training,
            )
        )

    def _named_inputs(self, keywords: dict[str, Any]) -> dict[str, torch.Tensor]:
        given = by_name(self.meta_model.module.forward, self.args) | keywords
        return {name.removeprefix("."): tensor for name, tensor in named_tensors("", given)}

    def _run(
        self, recorder: StepRecorder, evaluation: PartialEvaluation, keywords: dict[str, Any]
    ) -> None:
        module, hooks = self.meta_model.module, self.meta_model.hooks
        parameters = dict(module.named_parameters())
        trained = [each for each in parameters.values() if each.requires_grad]
        if self.training.accumulate > 1:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        is_amp = self.training.precision == "amp"
        # A region for any device is one for the device of the trace.
        autocast = torch.autocast("cpu", torch.bfloat16) if is_amp else nullcontext()
        with hooks.reporting_to(recorder):
            with evaluation.reporting_to(recorder):
                with saved_tensors_hooks(recorder.saving, unpacked), autocast:
                    output = call_model(module, self.args, keywords)
                    loss = loss_of(output, self.loss, module, is_base=self.meta_model.info.is_base)
                    del output
                if not recorder.kernels:
                    raise CannotTrace(
                        f"{self.meta_model.info.class_name}: forward and loss run no kernel, so "
                        "there is no step to trace; compute the loss from what the forward returns"
                    )
                recorder.start("backward")
                _run_backward(loss, self.meta_model.info.class_name)
                del loss
                recorder.end_backward()
            optimizer = make_optimizer(
                self.training.optimizer, trained, embeddings=embedding_parameters(module)
            )
            _create_states(optimizer, evaluation, trained)
            with unrecorded():
                _name_gradients(recorder, parameters | self._named_inputs(keywords))
                _name_states(recorder, parameters, optimizer)
            with evaluation.reporting_to(recorder):
                recorder.start("optimizer")
                take_step(optimizer, evaluation)
                optimizer.zero_grad()


def _create_states(
    optimizer: torch.optim.Optimizer,
    evaluation: PartialEvaluation,
    trained: Sequence[torch.nn.Parameter],
) -> None:
    """Run the first step of an optimizer, and give the second one the gradients of backward again.

    Some optimizers replace a gradient, as by a contiguous copy.
    """
    gradients = [parameter.grad for parameter in trained]
    take_step(optimizer, evaluation)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if parameter.grad is not gradient:
            parameter.grad = gradient


def _run_backward(loss: torch.Tensor, class_name: str) -> None:
    """Run backward as `loss.backward()` does, with function modes on for what is recomputed.

    Raises:
        FailedAfterForward: It failed.
    """
    gradient = torch.ones_like(loss, memory_format=torch.preserve_format)
    try:
        _engine_run_backward(
            (loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    except (LlmsimError, EndlessLoop):
        raise
    except Exception as error:
        raise FailedAfterForward(
            f"{class_name}: forward and loss run, but backward does not: {failure_reason(error)}"
        ) from error


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let no collection of garbage free a tensor at some moment of its own."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _gradients_dropped(module: torch.nn.Module) -> Iterator[None]:
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.grad = None


def _name_gradients(recorder: StepRecorder, tensors: Mapping[str, torch.Tensor]) -> None:
    """Name the gradients of parameters and of inputs."""
    for name, tensor in tensors.items():
        if tensor.is_leaf and tensor.grad is not None:
            recorder.table.name(tensor.grad, "gradient", name)


def _name_states(
    recorder: StepRecorder,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Name the states on the device; counters of steps are on the host."""
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                role: Role = "host" if is_paged(value) else "optimizer"
                recorder.table.name(value, role, f"{name}.{key}")
