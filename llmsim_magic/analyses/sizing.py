"""Whether a model fits a device, what binds if not, and what would make it fit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from llmsim_magic.analyses.memory import Memory
from llmsim_magic.records.accelerator import Accelerator
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.parallel import Parallel
from llmsim_magic.records.runtime import Runtime

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
    """One change that makes it fit, and what is then needed: `tp 4`, `weight_dtype int4`."""

    what: str
    value: int | str
    total: int


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
    """The same with what would make it fit: fewer bits, more devices, less to hold at once."""
    if found.fits:
        return found
    setup, usable = found.setup, found.usable

    def total(**change: object) -> int | None:
        try:
            return needed(replace(setup, **change)).total  # type: ignore[arg-type]
        except LlmsimError:
            return None

    def first(what: str, tries: Iterable[tuple[int | str, dict[str, object]]]) -> Remedy | None:
        for value, change in tries:
            bytes_then = total(**change)
            if bytes_then is not None and bytes_then <= usable:
                return Remedy(what, value, bytes_then)
        return None

    def at(name: str, size: int) -> Remedy | None:
        bytes_then = total(**{name: size}) if size else None
        return None if bytes_then is None else Remedy(name, size, bytes_then)

    tps = [
        (tp, {"parallel": Parallel(tp, setup.parallel.pp)})
        for tp in TPS
        if tp > setup.parallel.width
    ]
    dtypes = [(name, {"weight_dtype": name}) for name in LIGHTER_WEIGHTS]
    remedies = (
        first("tp", ((tp, dict(change)) for tp, change in tps)),
        first("weight_dtype", ((name, dict(change)) for name, change in dtypes)),
        at("batch", largest_batch(setup, usable, needed, setup.batch)),
        at("context", longest_context(setup, usable, needed, longest or setup.context)),
    )
    return replace(found, remedies=tuple(remedy for remedy in remedies if remedy is not None))


def largest_batch(setup: Setup, usable: int, needed: Needed, most: int = MOST_BATCH) -> int:
    """The largest batch that fits at that context, up to `most`; 0 where not even one does."""
    return _largest(most, lambda batch: _fits(replace(setup, batch=batch), usable, needed))


def longest_context(setup: Setup, usable: int, needed: Needed, most: int) -> int:
    """The longest context that fits at that batch, up to `most`; 0 where not even 1 does."""
    return _largest(most, lambda context: _fits(replace(setup, context=context), usable, needed))


def _fits(setup: Setup, usable: int, needed: Needed) -> bool:
    try:
        return needed(setup).total <= usable
    except LlmsimError:
        return False


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
