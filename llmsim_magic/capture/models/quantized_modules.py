"""Refuse a live module that is quantised: its weights cannot be counted without their values."""

from collections.abc import Iterator
from typing import Any

import torch

from llmsim_magic.records.errors import CannotTrace, clip

# Packages whose modules and tensors are quantised, or compute with quantised weights.
_LIBRARIES = {
    "aqlm": "AQLM",
    "auto_gptq": "AutoGPTQ",
    "auto_round": "AutoRound",
    "awq": "AutoAWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fp_quant": "FP-Quant",
    "gptqmodel": "GPTQModel",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "optimum.quanto": "optimum-quanto",
    "quanto": "quanto",
    "quark": "Quark",
    "spqr_quant": "SpQR",
    "torch.ao.nn.intrinsic.quantized": "torch.ao",
    "torch.ao.nn.quantized": "torch.ao",
    "torch.ao.nn.sparse.quantized": "torch.ao",
    "torchao": "torchao",
    "vptq": "VPTQ",
    **dict.fromkeys(
        (
            f"transformers.integrations.{method}"
            for method in (
                "bitnet",
                "compressed_tensors",
                "eetq",
                "fbgemm_fp8",
                "finegrained_fp8",
                "gemma_quant",
                "higgs",
                "metal_quantization",
                "mxfp4",
                "nvfp4",
            )
        ),
        "transformers",
    ),
}
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})
_CODES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_SIZES = (("out_features", "in_features"), ("outfeatures", "infeatures"))


def refuse_quantized(module: torch.nn.Module, name: str) -> None:
    """Refuse a module whose shapes and dtypes do not give the number and size of its weights.

    Modules and tensors of a quantisation library are quantised, and so are tensors of any class
    that wrap tensors of narrower elements, and linear layers that pack several weights into one
    integer.

    Args:
        module: A live module.
        name: Its display name.

    Raises:
        CannotTrace: The module or one of its parts is quantised.
    """
    for path, part in module.named_modules():
        quantized_class = next(_quantized(part), None)
        if quantized_class is not None:
            kind = clip(quantized_class.__name__, 60)
            library = _library(quantized_class)
            origin = f" of {library}" if library else ""
            raise CannotTrace(
                f"{name}: {clip(path, 80) or 'the module'} is quantised ({kind}{origin}), and its "
                f"weights cannot be counted without their values; {_remedy(module)}"
            )


def _remedy(module: torch.nn.Module) -> str:
    """What to trace instead."""
    config = getattr(module, "config", None)
    if getattr(config, "model_type", None) is not None:
        return "trace model.config, sized by its quantization_config or by weight_dtype"
    return (
        "trace the module before it is quantised, with weight_dtype='int4' or 'int8', or a model "
        "of transformers by its config with its quantization_config"
    )


def _quantized(part: torch.nn.Module) -> Iterator[type[Any]]:
    """The classes that make one module a quantised one: its own, or those of its tensors."""
    tensors = [each for each in _tensors(part) if each is not None]
    yield from (type(each) for each in tensors if _is_quantized(each))
    if _library(type(part)) is not None or _is_packed(part, tensors):
        yield type(part)


def _tensors(part: torch.nn.Module) -> Iterator[torch.Tensor | None]:
    yield from part._parameters.values()
    yield from part._buffers.values()
    yield from (each for each in vars(part).values() if isinstance(each, torch.Tensor))


def _library(kind: type[Any]) -> str | None:
    """The library that defines a class or one of its bases; None if it quantises nothing."""
    for home in (f"{each.__module__}." for each in kind.__mro__):
        for package, library in _LIBRARIES.items():
            if home.startswith(f"{package}."):
                return library
    return None


def _is_quantized(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a library's class, or wraps tensors that are narrower than it says."""
    kind = type(tensor)
    if tensor.is_quantized or (kind not in _PLAIN and _library(kind) is not None):
        return True
    if not tensor.is_floating_point() or not hasattr(tensor, "__tensor_flatten__"):
        return False
    names, _ = tensor.__tensor_flatten__()
    held = (getattr(tensor, each) for each in names)
    return any(
        isinstance(each, torch.Tensor) and each.dim() > 1 and each.element_size() < tensor.itemsize
        for each in held
    )


def _is_packed(part: torch.nn.Module, tensors: list[torch.Tensor]) -> bool:
    """Whether a linear layer keeps several weights in each element of an integer tensor."""
    for outputs, inputs in _SIZES:
        rows, columns = getattr(part, outputs, None), getattr(part, inputs, None)
        if type(rows) is int and type(columns) is int:
            codes = [each for each in tensors if each.dtype in _CODES and each.dim() > 1]
            whole = any(each.numel() == rows * columns for each in tensors)
            return bool(codes) and not whole
    return False
