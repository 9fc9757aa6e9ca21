"""Copy tensors, and objects that hold them, to the meta device."""

import copy
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from llmsim_magic.capture.kernels.tensors import tensors_in
from llmsim_magic.capture.meta.partial_evaluation import MAX_KNOWN_ELEMENTS
from llmsim_magic.capture.meta.small_buffers import small_buffer_copy
from llmsim_magic.records.errors import CannotTrace, describe

META = torch.device("meta")


class CannotCopy(TypeError):
    """A module or an input that has no copy without its values."""


def meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape, strides and dtype on meta; `CannotCopy` if none can be."""
    _check_dense(tensor)
    with torch.no_grad():
        return torch.empty_strided(
            tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=META
        )


def _check_dense(tensor: torch.Tensor) -> None:
    """Raise `CannotCopy` for a tensor that is more than a shape, strides and a dtype."""
    if tensor.is_nested:
        kind = "nested tensor"
    elif tensor.layout is not torch.strided:
        kind = f"tensor of layout {tensor.layout}"
    elif tensor.is_quantized:
        kind = "quantized tensor"
    elif isinstance(tensor, torch.masked.MaskedTensor):
        kind = "masked tensor"
    else:
        return
    raise CannotCopy(f"a {kind} cannot be represented without its values; make it dense")


def _check_whole(tensor: torch.Tensor) -> None:
    """Raise `CannotCopy` for an input that is a part of a tensor, or whose sizes are unknown."""
    if hasattr(tensor, "full_tensor"):
        raise CannotCopy("a DTensor holds one device's part; give its full_tensor()")
    if any(type(size) is not int for size in tensor.shape):
        raise CannotCopy("the sizes of a tensor are symbolic; give one of plain sizes")


class DeepCopyToMeta(torch.overrides.TorchFunctionMode):
    """Makes `copy.deepcopy` of a tensor return a meta tensor, or its values if it is small.

    A class may keep tables, which follow from its config, in plain attributes, as in buffers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), self.copied(tensor))
        if func is torch.Tensor.clone:  # called by Parameter.__deepcopy__
            return meta_tensor(args[0])
        return func(*args, **(kwargs or {}))

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        values = small_buffer_copy(tensor)
        return meta_tensor(tensor) if values is None else values


class _DeepCopyInputs(DeepCopyToMeta):
    """Also keeps the values of integer and boolean tensors of at most `MAX_KNOWN_ELEMENTS`."""

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        _check_dense(tensor)
        _check_whole(tensor)
        is_data = tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta
        is_known = not is_data and tensor.numel() <= MAX_KNOWN_ELEMENTS
        with torch._C.DisableTorchFunction():
            return tensor.detach().cpu().clone() if is_known else meta_tensor(tensor)


def inputs_on_meta(value: Any, *, with_gradients: bool = False) -> Any:
    """Copy inputs to the meta device; small integer and boolean tensors keep their values.

    Args:
        value: Tensors in any nested collection or object.
        with_gradients: Let the copy of a tensor require a gradient if the tensor does.

    Returns:
        A deep copy with the same structure.

    Raises:
        CannotTrace: If something in the inputs cannot be copied.
    """
    try:
        if any(is_lazy(tensor) for tensor in tensors_in(value)):
            raise CannotCopy("an uninitialized parameter has no shape; give a tensor")
        with _DeepCopyInputs():
            copied = copy.deepcopy(value)
        if with_gradients:
            for tensor, own in zip(tensors_in(value), tensors_in(copied), strict=True):
                own.requires_grad_(tensor.requires_grad)
        return copied
    except Exception as error:
        raise CannotTrace(f"inputs cannot be copied: {describe(error)}") from error
