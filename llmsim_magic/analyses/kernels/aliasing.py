"""Aliasing: where a tensor lies in its storage, and whether two tensors share bytes."""

from llmsim_magic.records.trace.recorded import Tensor


def distinct_elements(tensor: Tensor) -> int:
    """The number of distinct elements a tensor addresses; an expanded dimension counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        if stride != 0 or size == 0:
            count *= size
    return count


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one storage share a byte; True if that is too expensive to decide.

    Views with equal strides are compared dimension by dimension, as slices of one array.
    """
    if not distinct_elements(one) or not distinct_elements(other):
        return False
    if _end(one) <= _start(other) or _end(other) <= _start(one):
        return False
    slices = _slices(one, other)
    return slices is None or all(a < d and c < b for (a, b), (c, d) in slices)


def covers(outer: Tensor, inner: Tensor) -> bool:
    """Whether `outer` contains every byte of `inner`, which lies in the same storage.

    False if that is too expensive to decide.
    """
    start, end = _start(outer), _end(outer)
    if distinct_elements(outer) * outer.itemsize == end - start:
        return start <= _start(inner) and _end(inner) <= end
    slices = _slices(outer, inner)
    return slices is not None and all(a <= c and d <= b for (a, b), (c, d) in slices)


def _start(tensor: Tensor) -> int:
    return tensor.offset * tensor.itemsize


def _end(tensor: Tensor) -> int:
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = sum((size - 1) * stride for size, stride in steps if size)
    return (tensor.offset + last + 1) * tensor.itemsize


Range = tuple[int, int]


def _slices(one: Tensor, other: Tensor) -> list[tuple[Range, Range]] | None:
    """The index ranges of both views per dimension; None if they are not slices of one array."""
    # Offsets are decomposed by stride, largest first. A view that crosses the end of a row of the
    # array is not a slice of it.
    if one.strides != other.strides or one.itemsize != other.itemsize:
        return None
    dimensions = sorted(
        (
            (stride * one.itemsize, size, other_size)
            for stride, size, other_size in zip(one.strides, one.shape, other.shape, strict=True)
            if stride
        ),
        reverse=True,
    )
    dimensions.append((1, one.itemsize, one.itemsize))
    found: list[tuple[Range, Range]] = []
    one_rest, other_rest = _start(one), _start(other)
    row = 0
    for stride, size, other_size in dimensions:
        first, one_rest = divmod(one_rest, stride)
        second, other_rest = divmod(other_rest, stride)
        if row and max(first + size, second + other_size) * stride > row:
            return None
        found.append(((first, first + size), (second, second + other_size)))
        row = stride
    return found
