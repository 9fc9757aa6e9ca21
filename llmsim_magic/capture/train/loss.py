"""The loss of a model: labels that its own loss reads, or a function of its output."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from llmsim_magic.capture.inputs.forward_inputs import prefill_inputs
from llmsim_magic.capture.modalities.model_inputs import ModelInputs
from llmsim_magic.capture.modalities.signature import (
    HuggingFaceModel,
    is_encoder_decoder,
    parameters,
)
from llmsim_magic.records.errors import CannotTrace, type_name
from llmsim_magic.records.trace.workload import Workload

LossFunction = Callable[[Any], torch.Tensor]
_LABELS = "labels"


def training_inputs(
    model: HuggingFaceModel, workload: Workload, loss: LossFunction | None
) -> Iterator[ModelInputs]:
    """Yield inputs of a training step, with labels unless a loss function is given.

    Args:
        model: The model on the meta device.
        workload: Sequences of the micro-batch, and their tokens.
        loss: Computes the loss of the output; None for the model's own.

    Raises:
        CannotTrace: The model has no loss of its own, and none is given.
    """
    accepted = parameters(model.forward)
    if loss is None and not any(name in accepted for name in (_LABELS, *_OTHER_LABELS)):
        raise no_loss(type(model).__name__)
    for inputs in prefill_inputs(model, workload):
        keywords = dict(inputs.keywords)
        if "use_cache" in accepted:
            keywords["use_cache"] = False
        notes = [note for note in inputs.notes if not note.startswith("prefill: ")]
        if loss is not None:
            yield ModelInputs(keywords, notes)
            continue
        for labels in _labels(model, workload, keywords, accepted):
            given = keywords | labels
            if _LABELS in labels and is_encoder_decoder(model):
                given.pop("decoder_input_ids", None)  # which the model makes of the labels
            yield ModelInputs(given, notes)


def no_loss(class_name: str) -> CannotTrace:
    """The error for a model without a loss of its own."""
    return CannotTrace(
        f"{class_name} computes no loss: in Python, pass loss=, a function of its output that "
        "returns a scalar tensor, or choose a class with a head whose forward takes labels"
    )


def _returned_loss(output: Any) -> Any:
    """The loss that a model returns by this name, or alone; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output if output.numel() == 1 and output.requires_grad else None
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _labels(
    model: HuggingFaceModel,
    workload: Workload,
    keywords: Mapping[str, Any],
    accepted: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The labels that a loss may read, the likeliest first."""
    batch = workload.batch
    other = {name: make(batch) for name, make in _OTHER_LABELS.items() if name in accepted}
    if _LABELS in accepted:
        tokens = keywords.get("input_ids")
        if is_encoder_decoder(model):
            tokens = torch.zeros(batch, _target_length(model, workload), dtype=torch.long)
        if tokens is not None and not tokens.is_floating_point():
            yield {_LABELS: tokens.clone()} | other
        yield {_LABELS: torch.zeros(batch, dtype=torch.long)} | other
        yield {_LABELS: torch.zeros(batch)} | other
        yield {_LABELS: torch.zeros(batch, 1, dtype=torch.long)} | other
        config = model.config
        count = int(getattr(config, "num_labels", 2))
        yield {_LABELS: torch.zeros(batch, count)} | other
    if other:
        yield other


def _target_length(model: HuggingFaceModel, workload: Workload) -> int:
    """Tokens that the decoder reads: as many as the encoder, or as it has positions for."""
    longest = getattr(model.config, "max_target_positions", None)
    return workload.context if longest is None else min(workload.context, int(longest))


_OTHER_LABELS: Mapping[str, Callable[[int], Any]] = {
    "start_positions": lambda batch: torch.zeros(batch, dtype=torch.long),
    "end_positions": lambda batch: torch.zeros(batch, dtype=torch.long),
    "next_sentence_label": lambda batch: torch.zeros(batch, dtype=torch.long),
    "return_loss": lambda _: True,
}


def loss_of(output: Any, loss: LossFunction | None, class_name: str) -> torch.Tensor:
    """The loss of an output.

    Args:
        output: What the forward returned.
        loss: Computes the loss of the output; None for the model's own.
        class_name: That of the model.

    Raises:
        CannotTrace: The output has no loss, or it is no scalar that depends on parameters.
    """
    found: Any = None
    if loss is not None:
        found = loss(output)
    else:
        found = _returned_loss(output)
        if found is None:
            raise no_loss(class_name)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type_name(found)
        raise CannotTrace(f"{class_name}: the loss is {shape}, not a scalar tensor")
    if not found.requires_grad:
        raise CannotTrace(f"{class_name}: the loss depends on no parameter that is trained")
    return found
