"""Add the LoRA layers of an adapter to its base model, as transformers does when it loads one."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmsim_magic.records.errors import CannotTrace, describe, shorten

if TYPE_CHECKING:
    import torch

# What decides the layers' shapes and places; initial values, paths and code are left out.
_KEYS = (
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "exclude_modules", "modules_to_save", "target_parameters"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "use_rslora", "use_dora"),
)
_TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def declare_task(config: Any, adapter: Mapping[str, Any]) -> None:
    """Declare in a config the class of the base model that the adapter's task needs."""
    transformers = importlib.import_module("transformers")
    task = adapter.get("task_type")
    auto = _TASKS.get(task) if isinstance(task, str) else None
    mapping = getattr(transformers, auto)._model_mapping if auto else {}
    if type(config) in mapping:
        found = mapping[type(config)]
        first = found[0] if isinstance(found, (list, tuple)) else found
        config.architectures = [first.__name__]


def add_lora(module: "torch.nn.Module", adapter: Mapping[str, Any], name: str) -> str:
    """Add the adapter's layers to a model on the meta device, in place.

    Args:
        module: The base model.
        adapter: The keys of the `adapter_config.json`.
        name: The adapter's name, for error messages.

    Returns:
        A note for the report.

    Raises:
        CannotTrace: If peft is missing, or cannot add the layers.
    """
    base = shorten(str(adapter.get("base_model_name_or_path")))
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise CannotTrace(
            f"{name} is a LoRA adapter, and peft is not installed: pip install peft, or trace its "
            f"base model {base}"
        ) from error
    try:
        config = peft.LoraConfig(
            **{key: value for key, value in adapter.items() if key in _KEYS},
            init_lora_weights=False,
        )
        with importlib.import_module("torch").device("meta"):
            peft.inject_adapter_in_model(config, module)
    except Exception as error:
        raise CannotTrace(
            f"{name}: its LoRA layers cannot be added to its base model {base}: {describe(error)}"
        ) from error
    module.eval()
    targets = adapter.get("target_modules")
    places = ", ".join(sorted(targets)) if isinstance(targets, list) else targets
    return (
        f"LoRA layers of rank {shorten(adapter.get('r'), 20)} on {shorten(str(places), 120)[1:-1]}"
    )
