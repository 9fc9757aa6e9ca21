"""Changes that make a setup fit: more devices, fewer bits, a smaller batch or context."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from llmsim_magic.analyses.memory.capacity import (
    Fit,
    MemoryOf,
    Remedy,
    Setup,
    WorkLimitReached,
    largest_batch,
    longest_context,
    total_bytes,
)

TP_SIZES = (2, 4, 8, 16, 32, 64)
MAX_RANKS = 64
SMALLER_WEIGHT_DTYPES = ("fp8", "int4")  # most bits first
MAX_STAGES = 8  # each number of pipeline stages traces as many passes
_MAX_STAGES_TRIED = 3

Change = tuple[str, int | str]


def with_remedies(
    found: Fit,
    needed: MemoryOf,
    longest: int | None,
    first: Callable[[str], int],
    max_stages: int = MAX_STAGES,
) -> Fit:
    """The fit with a remedy of each kind that helps; each remedy alone makes it fit.

    More devices: the smallest `tp`, or where no `tp` suffices the fewest stages `pp` of the widest
    one. Fewer bits: the widest weight dtype, on more devices only where these are fewer than
    without it. A smaller workload: the largest batch, the longest context, or both; for a training
    step nothing else is tried.

    Args:
        found: The fit.
        needed: Computes the memory of a setup.
        longest: The longest context that the model supports; None if it has no limit.
        first: The batch or context that a search begins with, by its name.
        max_stages: The largest number of pipeline stages to try.
    """
    if found.fits or found.refusal is not None:
        return found
    ways: list[Remedy | None] = []
    if found.memory.step is None:
        search = _Devices(found.usable, needed, max_stages)
        devices = search.fewest(found.setup, (), MAX_RANKS)
        ways += [devices, _fewer_bits(found, devices, search)]
    ways += _smaller_workloads(found, needed, longest, first)
    return replace(found, remedies=tuple(way for way in ways if way is not None))


@dataclass(frozen=True, slots=True)
class _Devices:
    """A search for layouts of more devices.

    Attributes:
        usable: Bytes that each rank may need.
        needed: Computes the memory of a setup.
        max_stages: The largest number of pipeline stages to try.
    """

    usable: int
    needed: MemoryOf
    max_stages: int

    def fewest(self, setup: Setup, others: tuple[Change, ...], most: int) -> Remedy | None:
        """The layout of the fewest devices, up to `most`, that fits with some other changes."""
        with suppress(WorkLimitReached):
            return _first(self._layouts(setup, others, most), setup, self.usable, self.needed)
        return None

    def _layouts(
        self, setup: Setup, others: tuple[Change, ...], most: int
    ) -> Iterator[tuple[Change, ...]]:
        """Larger layouts that the model allows: wider ones, then more stages of the widest.

        Those whose mean share of the weights is too large already are left out untried.
        """
        memory, parallel = self.needed(changed(setup, others)), setup.parallel
        room = self.usable - memory.context
        if room <= 0:
            return
        times = -(-memory.weights // room)  # as many devices hold the weights
        sizes = [tp for tp in TP_SIZES if parallel.width < tp and tp * parallel.pp <= most]
        widest: tuple[Change, ...] = ()
        for tp in (size for size in sizes if size >= times * parallel.width):
            if not self._is_possible(setup, (("tp", tp),)):
                break  # nor does a multiple divide the model
            widest = (("tp", tp),)
            yield (*widest, *others)
        if self.max_stages <= parallel.pp:
            return
        if not widest:
            widest = self._widest(setup, [tp for tp in sizes if tp < times * parallel.width])
        width = changed(setup, widest).parallel.width
        fewest = max(-(-times * parallel.ranks // width), parallel.pp + 1)
        last = min(most // width, self.max_stages)
        for pp in range(fewest, last + 1)[:_MAX_STAGES_TRIED]:
            if not self._is_possible(setup, (*widest, ("pp", pp))):
                return  # no pipeline plan, or fewer layers than stages
            yield (*widest, ("pp", pp), *others)

    def _widest(self, setup: Setup, sizes: list[int]) -> tuple[Change, ...]:
        """The largest `tp` of some that the model allows; no change if it allows none."""
        changes = ((("tp", tp),) for tp in reversed(sizes))
        return next((each for each in changes if self._is_possible(setup, each)), ())

    def _is_possible(self, setup: Setup, changes: tuple[Change, ...]) -> bool:
        return total_bytes(changed(setup, changes), self.needed) is not None


def _fewer_bits(found: Fit, devices: Remedy | None, search: _Devices) -> Remedy | None:
    """The widest dtype that fits, or the dtype that fits on fewer devices than without it."""
    setup, usable, needed = found.setup, found.usable, search.needed
    dtypes = [dtype for dtype in SMALLER_WEIGHT_DTYPES if dtype != setup.weight_dtype]
    alone = _first([(("weight_dtype", dtype),) for dtype in dtypes], setup, usable, needed)
    if alone is not None or not dtypes:
        return alone
    most = MAX_RANKS if devices is None else devices.setup.parallel.ranks - 1
    fewest = search.fewest(setup, (("weight_dtype", dtypes[-1]),), most)
    if fewest is None:
        return None
    layout = fewest.changes[:-1]
    same = [(*layout, ("weight_dtype", dtype)) for dtype in dtypes]
    return _first(same, setup, usable, needed) or fewest


def _smaller_workloads(
    found: Fit, needed: MemoryOf, longest: int | None, first: Callable[[str], int]
) -> Iterator[Remedy | None]:
    """The largest batch and the longest context that fit; one sequence if neither does alone."""
    setup, usable = found.setup, found.usable
    if not found.fits_empty:
        return
    most = longest or setup.context
    sizes = {
        "batch": largest_batch(setup, usable, needed, setup.batch, first("batch")),
        "context": longest_context(setup, usable, needed, most, first("context")),
    }
    for what, limit in sizes.items():
        if limit.size:
            yield _first([((what, limit.size),)], setup, usable, needed)
    if setup.batch > 1 and not any(limit.size for limit in sizes.values()):
        one = replace(setup, batch=1)
        context = longest_context(one, usable, needed, setup.context, first("context")).size
        if context:
            yield _first([(("batch", 1), ("context", context))], setup, usable, needed)


def _first(
    tries: Iterable[tuple[Change, ...]], setup: Setup, usable: int, needed: MemoryOf
) -> Remedy | None:
    """The first of several changes that makes the setup fit, if it is found within the limit."""
    with suppress(WorkLimitReached):
        for changes in tries:
            then = changed(setup, changes)
            total = total_bytes(then, needed)
            if total is not None and total <= usable:
                return Remedy(changes, total, then)
    return None


def changed(setup: Setup, changes: tuple[Change, ...]) -> Setup:
    """The setup with changes of `tp`, `pp` or its own attributes."""
    values: dict[str, object] = dict(changes)
    layout: dict[str, object] = {name: values.pop(name) for name in ("tp", "pp") if name in values}
    if "tp" in layout:
        layout["ep"] = 1
    if layout:
        values["parallel"] = replace(setup.parallel, **layout)  # type: ignore[arg-type]
    return replace(setup, **values)  # type: ignore[arg-type]
