"""The loss of a model: labels that its own loss reads, or a function of its output."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from llmsim_magic.capture.configs.resolve import declared_classes
from llmsim_magic.capture.inputs.context_length import context_note, is_huggingface
from llmsim_magic.capture.inputs.forward_inputs import prefill_inputs
from llmsim_magic.capture.kernels.failure_reason import failure_reason
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import HuggingFaceModel, parameters
from llmsim_magic.capture.models.model_class import package_classes
from llmsim_magic.capture.train.labels import LabelChoices, computes_loss, label_names
from llmsim_magic.records.errors import CannotTrace, type_name
from llmsim_magic.records.trace.workload import Workload

LossFunction = Callable[[Any], torch.Tensor]
_MOST_FAILING = 2  # inputs tried with labels though the forward fails without


def training_inputs(
    model: HuggingFaceModel, workload: Workload, loss: LossFunction | None
) -> Iterator[ModelInputs]:
    """Yield inputs of a training step, with labels unless a loss function is given.

    Args:
        model: The model on the meta device.
        workload: Sequences of the micro-batch, and their tokens.
        loss: Computes the loss of the output; None for the model's own.
    """
    accepted = parameters(model.forward)
    failing: list[LabelChoices] = []
    runs = False
    for inputs in prefill_inputs(model, workload):
        keywords = dict(inputs.keywords)
        if "use_cache" in accepted:
            keywords["use_cache"] = False
        of_inputs = (note for note in inputs.notes if not note.startswith("prefill: "))
        notes = (*context_note(model, workload), *of_inputs)
        if loss is not None:
            yield ModelInputs(keywords, list(notes))
            continue
        choices = LabelChoices(model, workload, keywords, notes)
        yield from choices.likeliest()
        if not choices.runs_without_labels:
            failing.append(choices)
            continue
        runs = True
        yield from choices.others()
        if not label_names(model.forward):
            return
    for choices in failing[: 0 if runs else _MOST_FAILING]:
        yield from choices.others()


def no_loss(class_name: str, heads: Sequence[str] = (), left_out: str = "") -> CannotTrace:
    """The error for a model without a loss of its own.

    Args:
        class_name: That of the model.
        heads: Classes of the same config whose forward returns a loss.
        left_out: The one of them that would be built but for `base`.
    """
    if left_out:
        return CannotTrace(
            f"{class_name}, which base chooses, has no head and computes no loss: leave base out "
            f"to train {left_out}, or in Python pass loss=, a function of the output that returns "
            "a scalar tensor"
        )
    other = "choose a class with a head whose forward takes labels"
    if heads:
        other = f"declare a class that does in config.architectures: {', '.join(heads[:2])}"
    return CannotTrace(
        f"{class_name} computes no loss: in Python, pass loss=, a function of its output that "
        f"returns a scalar tensor, or {other}"
    )


def _returned_loss(output: Any) -> Any:
    """The loss that a model returns by this name, or alone; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output if output.numel() == 1 and output.requires_grad else None
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def classes_with_loss(config: Any) -> list[str]:
    """Names of the classes of a config whose forward returns a loss."""
    return [
        found.__name__ for found in package_classes(type(config)) if computes_loss(found.forward)
    ]


def _heads(model: Any) -> list[str]:
    """Other classes of a model's config whose forward returns a loss."""
    if not is_huggingface(model):
        return []
    return [name for name in classes_with_loss(model.config) if name != type(model).__name__]


def failed_loss(
    model: HuggingFaceModel, workload: Workload, error: Exception
) -> CannotTrace | None:
    """The error for a model that runs without labels and fails with them; None if it never runs.

    Args:
        model: The model on the meta device.
        workload: Sequences of the micro-batch, and their tokens.
        error: How it failed with the labels with which it came furthest.
    """
    inputs = prefill_inputs(model, workload)
    if not any(LabelChoices(model, workload, each.keywords).runs_without_labels for each in inputs):
        return None
    return CannotTrace(
        f"{type(model).__name__} runs, but its own loss does not, with any labels that its "
        f"signature and output suggest: {failure_reason(error)}; pass loss=, a function of its "
        "output"
    )


def _left_out(model: Any, heads: Sequence[str]) -> str:
    """The class with a loss that a checkpoint declares; empty if there is none."""
    declared = declared_classes(getattr(model.config, "architectures", None)) if heads else ()
    return next((name for name in declared if name in heads), "")


def loss_of(
    output: Any, loss: LossFunction | None, model: Any, *, is_base: bool = False
) -> torch.Tensor:
    """The loss of an output.

    Args:
        output: What the forward returned.
        loss: Computes the loss of the output; None for the model's own.
        model: The model.
        is_base: Its class was chosen by `base`, for the error.

    Raises:
        CannotTrace: The output has no loss, or it is no scalar that depends on parameters.
    """
    class_name = type(model).__name__
    found: Any = None
    if loss is not None:
        found = loss(output)
    else:
        found = _returned_loss(output)
        if found is None:
            heads = _heads(model)
            raise no_loss(class_name, heads, _left_out(model, heads) if is_base else "")
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type_name(found)
        raise CannotTrace(
            f"{class_name}: the loss is {shape}, not a scalar tensor; pass loss=, a function of "
            "the output that returns one"
        )
    if not found.requires_grad:
        raise CannotTrace(f"{class_name}: the loss depends on no parameter that is trained")
    return found
