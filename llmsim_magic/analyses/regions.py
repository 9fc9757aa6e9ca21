"""Where a tensor lies in its storage, and whether two tensors touch the same elements."""

from llmsim_magic.records.trace import Tensor


def distinct_elements(tensor: Tensor) -> int:
    """How many different elements a tensor addresses: an expanded dimension counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        if stride != 0 or size == 0:
            count *= size
    return count


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of a storage share an element; True where it cannot be told cheaply.

    Views with the same strides are slices of one array: compared dimension by dimension.
    """
    if one.storage != other.storage or not distinct_elements(one) or not distinct_elements(other):
        return False
    if _end(one) <= other.offset or _end(other) <= one.offset:
        return False
    if one.strides != other.strides or one.itemsize != other.itemsize:
        return True
    return _slices_overlap(one, other)


def _end(tensor: Tensor) -> int:
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    return tensor.offset + last + 1


def _slices_overlap(one: Tensor, other: Tensor) -> bool:
    """Per dimension, largest stride first, the starts differ by a whole number of strides."""
    dimensions = sorted(
        (
            (stride, size, other_size)
            for stride, size, other_size in zip(one.strides, one.shape, other.shape, strict=True)
            if stride
        ),
        reverse=True,
    )
    reach = 1
    for stride, size, other_size in reversed(dimensions):
        if stride < reach:
            return True
        reach = stride * max(size, other_size)
    one_rest, other_rest = one.offset, other.offset
    for stride, size, other_size in dimensions:
        one_start, one_rest = divmod(one_rest, stride)
        other_start, other_rest = divmod(other_rest, stride)
        if one_start + size <= other_start or other_start + other_size <= one_start:
            return False
    return True
