"""Whether a model fits a device, what binds if not, and what would make it fit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.parallel import Parallel

TPS = (2, 4, 8, 16, 32, 64)
LIGHTER_WEIGHTS = ("fp8", "int4")
MOST_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class Setup:
    """What is asked to fit: a workload, how the model is stored, and how many devices share it."""

    batch: int
    context: int
    parallel: Parallel = field(default_factory=Parallel)
    weight_dtype: str | None = None
    kv_dtype: str | None = None


Needed = Callable[[Setup], Memory]  # raises LlmsimError for a setup that cannot be


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes it fit, or two where none does alone, and the bytes then needed.

    The first of each kind that does: the fewest devices, the most bits, the most work at once.
    """

    changes: tuple[tuple[str, int | str], ...]
    total: int

    def __str__(self) -> str:
        return " and ".join(f"{what} {value}" for what, value in self.changes)


@dataclass(frozen=True, slots=True)
class Fit:
    """A setup on a device: bytes needed on each rank, and usable.

    `binds` names the first part, in the order weights, runtime, activations, cache, by which it
    is too much; None where it fits. `remedies` are changes that make it fit, one at a time.
    """

    setup: Setup
    device: str
    memory: Memory
    usable: int
    binds: str | None
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        return self.binds is None


def fit(setup: Setup, device: Accelerator, runtime: Runtime, needed: Needed) -> Fit | None:
    """Whether a setup fits; None for a device whose memory is not known.

    Raises `LlmsimError` for a setup that cannot be.
    """
    if device.memory_bytes is None:
        return None
    usable = runtime.usable_bytes(device.memory_bytes)
    memory = needed(setup)
    return Fit(setup, device.name, memory, usable, _binds(memory, usable))


def remedied(found: Fit, needed: Needed, longest: int | None) -> Fit:
    """The same with what would make it fit: more devices, fewer bits, less to hold at once."""
    if found.fits:
        return found
    setup, usable = found.setup, found.usable
    ways = (
        _first([(change,) for change in _devices(setup)], setup, usable, needed),
        _first([(change,) for change in _lighter(setup)], setup, usable, needed),
        *_less(found, needed, longest),
    )
    remedies = [way for way in ways if way is not None]
    if not remedies:
        pairs = [(more, fewer) for more in _devices(setup) for fewer in _lighter(setup)]
        both = _first(pairs, setup, usable, needed)
        remedies = [] if both is None else [both]
    return replace(found, remedies=tuple(remedies))


Change = tuple[str, int | str]


def _devices(setup: Setup) -> list[Change]:
    return [("tp", tp) for tp in TPS if tp > setup.parallel.width]


def _lighter(setup: Setup) -> list[Change]:
    dtypes = [dtype for dtype in LIGHTER_WEIGHTS if dtype != setup.weight_dtype]
    return [("weight_dtype", dtype) for dtype in dtypes]


def _first(
    tries: Iterable[tuple[Change, ...]], setup: Setup, usable: int, needed: Needed
) -> Remedy | None:
    """The first changes that make it fit."""
    for changes in tries:
        total = _total(_changed(setup, changes), needed)
        if total is not None and total <= usable:
            return Remedy(changes, total)
    return None


def _less(found: Fit, needed: Needed, longest: int | None) -> Iterator[Remedy | None]:
    """The largest batch and the longest context that fit, where any does."""
    setup, usable = found.setup, found.usable
    sizes = {
        "batch": largest_batch(setup, usable, needed, setup.batch),
        "context": longest_context(setup, usable, needed, longest or setup.context),
    }
    for what, size in sizes.items():
        if size:
            yield _first([((what, size),)], setup, usable, needed)


def _changed(setup: Setup, changes: tuple[Change, ...]) -> Setup:
    values: dict[str, object] = dict(changes)
    if "tp" in values:
        values["parallel"] = replace(setup.parallel, tp=values.pop("tp"), ep=1)  # type: ignore[arg-type]
    return replace(setup, **values)  # type: ignore[arg-type]


def _total(setup: Setup, needed: Needed) -> int | None:
    """The bytes of each rank; None for a setup that cannot be."""
    try:
        return needed(setup).total
    except LlmsimError:
        return None


def largest_batch(setup: Setup, usable: int, needed: Needed, most: int = MOST_BATCH) -> int:
    """The largest batch that fits at that context, up to `most`; 0 where not even one does."""
    return _largest(most, lambda batch: _fits(replace(setup, batch=batch), usable, needed))


def longest_context(setup: Setup, usable: int, needed: Needed, most: int) -> int:
    """The longest context that fits at that batch, up to `most`; 0 where not even 1 does."""
    return _largest(most, lambda context: _fits(replace(setup, context=context), usable, needed))


def _fits(setup: Setup, usable: int, needed: Needed) -> bool:
    total = _total(setup, needed)
    return total is not None and total <= usable


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `most` of which something holds, as it does of all lesser ones."""
    low, high = 0, 1
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _binds(memory: Memory, usable: int) -> str | None:
    so_far = 0
    for name in ("weights", "buffers", "runtime", "activations", "cache"):
        so_far += getattr(memory, name)
        if so_far > usable:
            return name
    return None
