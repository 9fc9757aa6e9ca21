"""The largest size whose memory fits, where each size takes a trace to measure."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from llmsim_magic.analyses.memory.capacity import Limit, WorkLimitReached
from llmsim_magic.records.errors import LlmsimError

_FARTHEST = 16  # times the largest measured size, to which a search extrapolates
_LOOK_AHEAD = 8  # sizes above the answer, at most
_APART = 0.1  # of a size, at least, between two that determine a line: rounding bends it less


@dataclass
class SizeSearch:
    """Searches for the largest size that fits, of one quantity such as the batch.

    Every answer was measured: the size fits, and one more does not. Measured sizes are shared by
    the searches for different amounts of memory, which interpolate between them to choose the next.

    Attributes:
        needed: Measures the bytes that a size needs; they grow with it, but for rounding. Raises
            LlmsimError for an impossible size, WorkLimitReached where no more may be measured.
        most: The largest size to consider.
        first: The size to begin with.
        rounding: Bytes by which a size may need more than a larger one. Sizes above one that is
            too large by no more than this are measured too.
    """

    needed: Callable[[int], int]
    most: int
    first: int = 1
    rounding: int = 0
    _measured: dict[int, int | None] = field(default_factory=dict, init=False)

    def largest(self, usable: int) -> Limit:
        """The largest size that needs at most so many bytes; 0 if none does."""
        low, high = self._bracket(usable)
        step = 0
        try:
            while high - low > 1:
                size = self._candidate(usable, low, high, step)
                if self._fits(size, usable):
                    step = step * 2 if step > 0 else 1
                    low = size
                else:
                    step = step * 2 if step < 0 else -1
                    high = size
            return Limit(self._beyond_rounding(low, usable))
        except WorkLimitReached:
            return Limit(low, stopped=True)

    def _beyond_rounding(self, low: int, usable: int) -> int:
        """The size that fits, or one above it that does although some between them do not."""
        for size in range(low + 1, min(low + _LOOK_AHEAD, self.most) + 1):
            if self._fits(size, usable):
                return self._beyond_rounding(size, usable)
            if not _is_within(self._measured[size], usable + self.rounding):
                break
        return low

    def _bracket(self, usable: int) -> tuple[int, int]:
        """The largest measured size that fits, and the smallest larger one that does not."""
        known = self._measured.items()
        low = max((size for size, each in known if _is_within(each, usable)), default=0)
        larger = (size for size, each in known if size > low and not _is_within(each, usable))
        return low, min(larger, default=self.most + 1)

    def _candidate(self, usable: int, low: int, high: int, step: int) -> int:
        """The next size to measure, between one that fits and one that does not.

        Args:
            usable: The bytes that may be needed.
            low: A size that fits.
            high: A size that does not.
            step: How far to go at least if the last size fitted, or back (below 0) if it did not;
                it doubles, so that a wrong estimate costs few measurements.
        """
        if high <= self.most and high - low <= 2 * abs(step):
            return (low + high) // 2
        size = self._estimate(usable)
        size = max(size, low + max(step, 1))
        if high <= self.most:
            size = min(size, high + min(step, -1))
        return min(max(size, low + 1), high - 1)

    def _estimate(self, usable: int) -> int:
        """The size at which the memory is full, by a line through two measured sizes."""
        sizes = [(size, each) for size, each in sorted(self._measured.items()) if each is not None]
        if not sizes:
            return min(self.first, self.most)
        largest = sizes[-1][0]
        if len(sizes) == 1:
            return max(largest // 2, 1) if sizes[0][1] > usable else 2 * largest
        upper = min(bisect_left([each for _, each in sizes], usable), len(sizes) - 1) or 1
        large, most = sizes[upper]
        apart = (each for each in reversed(sizes[:upper]) if large - each[0] >= _APART * large)
        small, least = next(apart, sizes[upper - 1])
        if most <= least:
            return largest * _FARTHEST
        return min(
            small + (usable - least) * (large - small) // (most - least), largest * _FARTHEST
        )

    def _fits(self, size: int, usable: int) -> bool:
        if size not in self._measured:
            try:
                self._measured[size] = self.needed(size)
            except LlmsimError:
                self._measured[size] = None
        return _is_within(self._measured[size], usable)


def _is_within(nbytes: int | None, usable: int) -> bool:
    return nbytes is not None and nbytes <= usable
