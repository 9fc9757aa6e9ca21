"""Inputs that the user gives to a live module: positional arguments and the batch size."""

from collections.abc import Iterable
from typing import Any

from torch.nn.utils.rnn import PackedSequence

from llmsim_magic.capture.kernels.tensors import tensors_in


def positional_arguments(inputs: Any) -> tuple[Any, ...]:
    """The positional arguments in a tuple or list; any other value is the only one.

    A packed sequence is a tuple of torch's own, and one argument.
    """
    is_single = isinstance(inputs, PackedSequence) or not isinstance(inputs, (tuple, list))
    return (inputs,) if is_single else tuple(inputs)


def batch_size(arguments: Iterable[Any]) -> int:
    """The samples of the first argument with tensors: their first dimension, or 1 of a scalar.

    Of a packed sequence, the samples of its first step.
    """
    for argument in arguments:
        if isinstance(argument, PackedSequence):
            return int(argument.batch_sizes[0])
        for tensor in tensors_in(argument):
            return max(tensor.shape[0], 1) if tensor.dim() else 1
    return 1
