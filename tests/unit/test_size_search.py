"""The search for the largest size that fits is exact, and measures few sizes."""

from collections.abc import Callable

import pytest

from llmsim_magic.analyses.memory.capacity import Limit, WorkLimitReached
from llmsim_magic.analyses.memory.size_search import SizeSearch
from llmsim_magic.records.errors import InvalidValue

SEGMENT = 20_480
USABLE = (50_000, 400_000, 1_000_000, 5_000_000, 9_999_999, 30_000_000)


def line(size: int) -> int:
    return 300_000 + 1_000 * size


def segments(size: int) -> int:
    """A line in steps, as an allocator takes segments."""
    return -(-line(size) // SEGMENT) * SEGMENT


def bend(size: int) -> int:
    """The optimizer's pass is the peak of small batches, and backward that of large ones."""
    return max(700_000, 100_000 + 2_000 * size)


def parabola(size: int) -> int:
    """As attention that writes its scores out needs, of the context."""
    return 100_000 + 100 * size + size * size


class Measured:
    """A function that counts the distinct sizes which it measures."""

    def __init__(self, function: Callable[[int], int]) -> None:
        self.function, self.sizes = function, list[int]()

    def __call__(self, size: int) -> int:
        self.sizes.append(size)
        return self.function(size)


@pytest.mark.parametrize("first", [1, 8, 5_000])
@pytest.mark.parametrize("most", [3, 1_000, 10**6])
@pytest.mark.parametrize("function", [line, segments, bend, parabola])
def test_what_is_found_is_the_largest(
    function: Callable[[int], int], most: int, first: int
) -> None:
    measured = Measured(function)
    search = SizeSearch(measured, most, first)
    for usable in USABLE:
        expected = max((n for n in range(1, min(most, 40_000) + 1) if function(n) <= usable),
                       default=0)  # fmt: skip
        assert search.largest(usable) == Limit(expected), usable
    assert len(measured.sizes) == len(set(measured.sizes))


@pytest.mark.parametrize("function", [line, segments, bend, parabola])
def test_a_device_takes_few_measurements_and_further_ones_fewer(
    function: Callable[[int], int],
) -> None:
    measured = Measured(function)
    search = SizeSearch(measured, 10**6, 4)
    search.largest(USABLE[-1])
    assert len(measured.sizes) <= 16
    for usable in range(2_000_000, 28_000_000, 1_000_000):
        search.largest(usable)
    assert len(measured.sizes) <= 16 + 26 * 7


def test_what_fits_at_the_limit_is_measured_there_alone_for_larger_devices() -> None:
    measured = Measured(line)
    search = SizeSearch(measured, 512, 512)
    assert search.largest(10**9) == search.largest(10**8) == Limit(512)
    assert measured.sizes == [512]


def test_an_impossible_size_does_not_fit() -> None:
    def needed(size: int) -> int:
        if size > 77:
            raise InvalidValue("the model has 77 positions")
        return size

    assert SizeSearch(needed, 10**6).largest(10**9) == Limit(77)


def test_a_search_that_may_not_go_on_returns_what_it_knows() -> None:
    measured = Measured(line)

    def needed(size: int) -> int:
        if len(measured.sizes) == 3:
            raise WorkLimitReached
        return measured(size)

    found = SizeSearch(needed, 10**6).largest(10**8)
    assert found.stopped
    assert line(found.size) <= 10**8


@pytest.mark.parametrize("usable", [1_000, 1_499, 1_530, 1_700])
def test_a_size_that_rounding_alone_excludes_hides_no_larger_one(usable: int) -> None:
    def uneven(size: int) -> int:
        return 1_000 + 20 * size + (100 if size % 3 == 1 else 0)

    found = SizeSearch(uneven, 1_000, rounding=100).largest(usable).size
    assert found == max((n for n in range(1, 100) if uneven(n) <= usable), default=0)
