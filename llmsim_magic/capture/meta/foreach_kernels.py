"""The results of kernels over lists of tensors, `torch._foreach_*`, on `meta`.

On `meta` torch runs such a kernel tensor by tensor, by slow functions in Python.
"""

from typing import Any

import torch

from llmsim_magic.capture.kernels.kernel_cache import like
from llmsim_magic.capture.kernels.kernel_facts import facts
from llmsim_magic.capture.kernels.tensors import tensors_in

_PREFIX = "aten::_foreach_"
_are_elementwise: dict[str, bool] = {}  # by the name of the kernel of one tensor


def foreach_result(func: Any, args: tuple[Any, ...]) -> Any:
    """Return what a kernel over lists returns, without running it.

    Args:
        func: The `OpOverload` that is called.
        args: Its positional arguments, all tensors on `meta`.

    Returns:
        None for a kernel in place, a list of new tensors for an elementwise one; `NotImplemented`
        for any other kernel, and for lists of unequal shapes or dtypes, which torch may broadcast,
        promote or refuse.
    """
    name = func._schema.name
    if not name.startswith(_PREFIX) or not _are_alike(args):
        return NotImplemented
    if facts(func).is_in_place:
        return None
    if not _is_elementwise(name.removeprefix(_PREFIX)):
        return NotImplemented
    return [like(tensor) for tensor in args[0]]


def _are_alike(args: tuple[Any, ...]) -> bool:
    """Whether all lists of tensors have equal shapes and dtypes, of floating-point numbers.

    Some kernels make floating-point numbers of integers, or refuse them in place.
    """
    lists = [value for value in args if isinstance(value, list) and tensors_in(value[:1])]
    kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in lists]
    return all(dtype.is_floating_point for _, dtype in kinds[0]) and all(
        each == kinds[0] for each in kinds
    )


def _is_elementwise(name: str) -> bool:
    """Whether the kernel of one tensor of this name works element by element."""
    known = _are_elementwise.get(name)
    if known is None:
        packet = getattr(torch.ops.aten, name, None)
        overloads = [] if packet is None else [getattr(packet, o) for o in packet.overloads()]
        known = any(torch.Tag.pointwise in overload.tags for overload in overloads)
        _are_elementwise[name] = known
    return known
