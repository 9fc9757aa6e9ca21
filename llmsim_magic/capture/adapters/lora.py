"""Adapt a model on `meta` by LoRA for training, as `peft.get_peft_model` adapts it on a device."""

import importlib
from typing import Any

import torch

from llmsim_magic.capture.adapters.lora_targets import check_targets, named_targets
from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.records.errors import CannotTrace, InvalidValue, clip, describe
from llmsim_magic.records.muted_thread import muted_thread
from llmsim_magic.records.trace.lora import ALL_LINEAR, Lora

META = torch.device("meta")
# Tasks for which peft also trains the head, and the auto class of transformers for each.
_TASKS_WITH_HEAD = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_MAX_NAMES = 8  # in the note


def with_lora(
    model: torch.nn.Module, options: Lora, *, checkpointing: bool = False
) -> tuple[torch.nn.Module, str]:
    """Freeze a model and add LoRA adapters to it, in place.

    The model keeps its class and its modules their paths: an adapted module gets the children
    `base_layer`, `lora_A.default` and `lora_B.default`. As on a device, peft keeps the adapters of
    a model in bfloat16 or float16 in float32.

    Args:
        model: A model on the meta device. If this raises, it may be left half adapted.
        options: The adapters.
        checkpointing: Its layers are to be recomputed in backward; the outputs of the embedding
            then require a gradient, as `enable_input_require_grads` of transformers arranges.

    Returns:
        The model, and a note for the report.

    Raises:
        InvalidValue: A target matches no module that peft can adapt, or the model has adapters.
        CannotTrace: peft is missing, or cannot adapt the model.
    """
    return adapted(model, lora_config(model, options), options, checkpointing=checkpointing)


def lora_config(model: torch.nn.Module, options: Lora) -> Any:
    """The `peft.LoraConfig` that adapts a model, which raises as `with_lora` does."""
    peft = import_peft("lora")
    if hasattr(model, "peft_config"):
        raise InvalidValue("lora: the model already has adapters; trace it without lora")
    targets: Any = list(options.targets) or _default_targets(model, peft)
    return peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        use_dora=options.dora,
        use_rslora=options.rslora,
        task_type=_task_with_head(model),
        init_lora_weights=False,  # on meta there are no values to initialise
    )


def import_peft(option: str) -> Any:
    """Import peft.

    Args:
        option: The option that needs it, for the error.

    Raises:
        CannotTrace: It is not installed, or fails to import.
    """
    try:
        with muted_thread():
            return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise CannotTrace(f"{option}: peft cannot be imported: {describe(error)}") from error
        raise CannotTrace(
            f"{option} needs peft, which is not installed: pip install 'llmsim-magic[train]'"
        ) from error
    except Exception as error:
        raise CannotTrace(f"{option}: peft cannot be imported: {describe(error)}") from error


def adapted(
    model: torch.nn.Module, config: Any, options: Lora, *, checkpointing: bool
) -> tuple[torch.nn.Module, str]:
    """Add the adapters of a `peft.LoraConfig` to a model; as `with_lora`."""
    peft = import_peft("lora")
    try:
        with muted_thread(), META:
            wrapped = peft.get_peft_model(model, config)
    except Exception as error:
        check_targets(model, options.targets)
        raise CannotTrace(
            f"lora: peft cannot adapt the model: {clip(describe(error), 160)}{named_targets(model)}"
        ) from error
    # Names of modules that transformers has since merged into one are no longer in the config.
    check_targets(model, [name for name in options.targets if name in config.target_modules])
    expert_adapters = importlib.import_module("llmsim_magic.capture.adapters.expert_adapters")
    expert_adapters.on_meta(model)
    base: Any = wrapped.get_base_model()
    if checkpointing and hasattr(base, "enable_input_require_grads"):
        base.enable_input_require_grads()
    return base, _note(base, options)


def _default_targets(model: torch.nn.Module, peft: Any) -> Any:
    """Peft's own targets for the type of model: names or a pattern; else all linear layers."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return peft.LoraModel.target_module_mapping.get(model_type, ALL_LINEAR)


def _task_with_head(model: torch.nn.Module) -> str | None:
    """Peft's name of the task of a model whose head is trained beside the adapters."""
    transformers = importlib.import_module("transformers")
    config_class = type(getattr(model, "config", None))
    for task, auto in _TASKS_WITH_HEAD.items():
        mapping = getattr(transformers, auto)._model_mapping
        if config_class in mapping:
            classes = mapping[config_class]
            if type(model) in (classes if isinstance(classes, (list, tuple)) else (classes,)):
                return task
    return None


def _note(model: torch.nn.Module, options: Lora) -> str:
    trained = [each for each in model.parameters() if each.requires_grad]
    dtypes = ", ".join(dict.fromkeys(dtype_name(each.dtype) for each in trained))
    places = {
        getattr(part, "parameter_name", None) or path.rpartition(".")[2]: None
        for path, part in model.named_modules()
        if "lora_A" in part._modules
    }
    names = ", ".join([*places][:_MAX_NAMES]) + (", …" if len(places) > _MAX_NAMES else "")
    count = sum(each.numel() for each in trained)
    return (
        f"LoRA adapters of rank {options.r} on {clip(names, 160)} by peft: {count:,} parameters in "
        f"{dtypes} are trained, the others are frozen"
    )
