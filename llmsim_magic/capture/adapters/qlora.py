"""Adapt a model on `meta` by QLoRA: LoRA on linear layers whose weights are kept in NF4."""

import importlib
from typing import Any

import torch
from torch import nn

from llmsim_magic.capture.adapters.lora import adapted, import_peft, lora_config
from llmsim_magic.capture.adapters.nf4_linear import Linear4bit
from llmsim_magic.capture.kernels.tensors import dtype_name
from llmsim_magic.records.errors import CannotTrace, InvalidValue, describe
from llmsim_magic.records.muted_thread import muted_thread
from llmsim_magic.records.trace.lora import Lora

_HALF = (torch.float16, torch.bfloat16)


def with_qlora(
    model: nn.Module, options: Lora, *, checkpointing: bool = False
) -> tuple[nn.Module, str]:
    """Keep the linear weights of a model in NF4, freeze it and add LoRA adapters, in place.

    The steps are those of the QLoRA recipe: `BitsAndBytesConfig(load_in_4bit=True,
    bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)` with the model's 16-bit dtype to
    compute in, bfloat16 for one in float32; then peft's `prepare_model_for_kbit_training`, which
    casts all other 16-bit parameters to float32, norms, embeddings and the head; then
    `get_peft_model`. So the hidden states are in float32, unless autocast makes them narrower.

    Args:
        model: A model of transformers on the meta device. If this raises, it may be half adapted.
        options: The adapters.
        checkpointing: As for `with_lora`.

    Returns:
        The model, and a note for the report.

    Raises:
        InvalidValue: As `with_lora`; also for a model that transformers cannot quantise, and DoRA.
        CannotTrace: peft is missing, or cannot adapt the model.
    """
    peft = import_peft("qlora")
    if options.dora:
        raise InvalidValue("qlora: dora on weights in four bits is not supported; leave dora out")
    replaced = _quantize(model)
    try:
        with muted_thread():
            peft.prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=False, auto_clear_cache=False
            )
    except Exception as error:
        raise CannotTrace(f"qlora: peft cannot prepare the model: {describe(error)}") from error
    for layer in replaced:
        if layer.bias is not None:  # the first forward casts it for good
            layer.bias.data = layer.bias.data.to(layer.compute_dtype)
    config = lora_config(model, options)
    adapter = importlib.import_module("llmsim_magic.capture.adapters.nf4_adapter")
    config._register_custom_module({Linear4bit: adapter.Linear4bit})
    model, note = adapted(model, config, options, checkpointing=checkpointing)
    return model, f"{_note(replaced)}; {note}"


def _quantize(model: Any) -> list[Linear4bit]:
    """Replace the linear layers that transformers quantises with bitsandbytes, and return them."""
    base = importlib.import_module("transformers.quantizers.base")
    should_convert = importlib.import_module(
        "transformers.quantizers.quantizers_utils"
    ).should_convert_module
    if not hasattr(model, "all_tied_weights_keys"):
        raise InvalidValue(
            f"qlora: {type(model).__name__} is not a model of transformers, which alone quantises "
            "with bitsandbytes"
        )
    kept = [*base.get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    replaced = []
    for path, part in list(model.named_modules()):
        widths = _widths(part)
        if widths is not None and should_convert(path, kept):
            dtype = part.weight.dtype
            compute = dtype if dtype in _HALF else torch.bfloat16
            layer = Linear4bit(*widths, part.bias, dtype, compute).train(part.training)
            model.set_submodule(path, layer)
            replaced.append(layer)
    if not replaced:
        raise InvalidValue(f"qlora: {type(model).__name__} has no linear layer to quantise")
    return replaced


def _widths(part: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a linear layer that bitsandbytes replaces; else None."""
    conv1d = importlib.import_module("transformers.pytorch_utils").Conv1D
    if type(part) is nn.Linear:
        return part.in_features, part.out_features
    if isinstance(part, conv1d):
        return part.weight.shape[0], part.weight.shape[1]
    return None


def _note(replaced: list[Linear4bit]) -> str:
    tensors = [each for layer in replaced for each in (layer.weight, *layer.buffers())]
    nbytes = sum(each.nbytes for each in tensors)
    computed = ", ".join(dict.fromkeys(dtype_name(layer.compute_dtype) for layer in replaced))
    return (
        f"{len(replaced)} linear weights are kept in NF4 with double quantisation, as bitsandbytes "
        f"keeps them ({nbytes:,} bytes), and dequantised to {computed} for each matmul; all other "
        "16-bit parameters are cast to float32, as peft's prepare_model_for_kbit_training does"
    )
