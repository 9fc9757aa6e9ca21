"""Set up a model on `meta` for training: training mode, adapters and gradient checkpointing."""

from dataclasses import replace
from typing import Any

from llmsim_magic.capture.adapters.lora import with_lora
from llmsim_magic.capture.adapters.qlora import with_qlora
from llmsim_magic.capture.inputs.context_length import is_huggingface
from llmsim_magic.capture.meta.isolation import isolated
from llmsim_magic.capture.models.live_model_copy import LIVE_MODULE
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.parallel.tensor_parallel_plan import check_trainable
from llmsim_magic.capture.train.library_warnings import without_library_warnings
from llmsim_magic.records.errors import CannotTrace, InvalidValue
from llmsim_magic.records.trace.lora import parse_lora
from llmsim_magic.records.trace.training import Training


@isolated()
def trainable(meta_model: MetaModel, training: Training) -> MetaModel:
    """Put a model into training mode, with what its options ask for.

    A copy of a live module is in it already, as far as the module is.

    Args:
        meta_model: A model that has not run yet; its module is changed.
        training: How its steps run.

    Returns:
        The model.

    Raises:
        InvalidValue: The model does not support checkpointing, or has no module that an adapter
            is to be added to.
        CannotTrace: The model has nothing to train, or peft is missing or cannot adapt it.
    """
    module, notes = meta_model.module, meta_model.notes
    name = meta_model.info.name
    check_trainable(meta_model.info.plan, name)
    if meta_model.info.origin != LIVE_MODULE:
        module.train()
    with without_library_warnings():
        if training.lora is not None:
            adapt = with_qlora if training.qlora else with_lora
            options = parse_lora(training.lora)
            module, note = adapt(module, options, checkpointing=training.checkpointing)
            notes = (*notes, note)
        if training.checkpointing:
            _enable_checkpointing(module, name)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise CannotTrace(f"{name} has no parameter that requires a gradient: nothing is trained")
    return replace(meta_model, module=module, notes=notes)


def _enable_checkpointing(module: Any, name: str) -> None:
    unsupported = InvalidValue(
        f"checkpointing cannot be applied to {name}: {type(module).__name__} does not support "
        "gradient checkpointing; leave it out"
    )
    if not is_huggingface(module) or not module.supports_gradient_checkpointing:
        raise unsupported
    # the name from transformers 5.24 on
    enable = getattr(module, "activation_checkpointing_enable", None)
    try:
        (enable or module.gradient_checkpointing_enable)()
    except ValueError:  # none of its modules can, although its class says so
        raise unsupported from None
