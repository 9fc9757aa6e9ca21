"""Whether a model fits on a device, which part does not, and the largest sizes that fit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from llmsim_magic.analyses.memory.memory import Memory
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.parallel import Parallel

MAX_BATCH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A deployment: the workload, storage dtypes, and parallelism; `dp` of a training step.

    The cache holds `context` tokens of each sequence, and after a step of phase `decode` one more.
    """

    batch: int
    context: int
    phase: str = "prefill"
    parallel: Parallel = field(default_factory=Parallel)
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    dp: int = 1

    @property
    def devices(self) -> int:
        """How many devices there are, of which each holds what is computed of one."""
        return self.parallel.ranks * self.dp


# Raises LlmsimError for an impossible setup, WorkLimitReached where a search may not go on.
MemoryOf = Callable[[Setup], Memory]


class WorkLimitReached(Exception):
    """The next setup of a search would take more work than the search may do."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest size that fits, 0 if none does; a larger one may fit if the search `stopped`."""

    size: int
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes that together make a setup fit, and the bytes that each rank then needs.

    The smallest changes of their kind: fewest devices, most bits, largest batch or context.
    """

    changes: tuple[tuple[str, int | str], ...]
    total: int
    setup: Setup

    def __str__(self) -> str:
        return " and ".join(f"{what} {value}" for what, value in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A setup on a device under a runtime: the bytes each rank needs, and the usable bytes.

    `binds` is the first part that exceeds the memory, adding weights, buffers, context, activations
    and cache in this order, of a training step states of the optimizer, gradients, saved tensors,
    temporaries and what is reserved beside them; None if the memory suffices. `refusal` says why
    the device does not run the model even so, such as that it does not compute in its dtype. Each
    of `remedies` alone makes it fit.
    """

    setup: Setup
    device: str
    runtime: str
    memory: Memory
    usable: int
    binds: str | None
    remedies: tuple[Remedy, ...] = ()
    refusal: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.binds is None

    @property
    def runs(self) -> bool:
        """Whether the device has the memory and computes in the dtype."""
        return self.fits and self.refusal is None

    @property
    def fits_empty(self) -> bool:
        """Whether the device holds what does not depend on batch and context."""
        return self.binds not in ("weights", "buffers", "context", "optimizer")

    @property
    def needed(self) -> int:
        """Bytes that each rank needs."""
        return self.memory.required

    @property
    def available(self) -> int:
        """Bytes of a device that the runtime can use."""
        return self.usable


def fit(setup: Setup, device: Accelerator, runtime: Runtime, needed: MemoryOf) -> Fit | None:
    """Whether a setup fits; None if the memory of the device is unknown.

    Args:
        setup: The deployment.
        device: The accelerator of each rank.
        runtime: The runtime, which limits the usable memory.
        needed: Computes the memory of a setup.

    Raises:
        LlmsimError: If the setup is impossible.
    """
    if device.memory_bytes is None:
        return None
    usable = runtime.usable_bytes(device.memory_bytes)
    memory = needed(setup)
    return Fit(
        setup=setup,
        device=device.name,
        runtime=runtime.name,
        memory=memory,
        usable=usable,
        binds=_binds(memory, usable),
    )


def total_bytes(setup: Setup, needed: MemoryOf) -> int | None:
    """The bytes of each rank; None for an impossible setup."""
    try:
        return needed(setup).required
    except LlmsimError:
        return None


def largest_batch(
    setup: Setup,
    usable: int,
    needed: MemoryOf,
    most: int = MAX_BATCH,
    first: int = 1,
    known: int = 0,
) -> Limit:
    """The largest batch up to `most` that fits at the setup's context.

    Tries `first` first; `known` is a batch that fits, 0 if none is known.
    """
    return _largest(
        most, first, lambda batch: _fits(replace(setup, batch=batch), usable, needed), known
    )


def longest_context(
    setup: Setup, usable: int, needed: MemoryOf, most: int, first: int = 1, known: int = 0
) -> Limit:
    """The longest context up to `most` that fits at the setup's batch, as `largest_batch`."""
    return _largest(
        most, first, lambda context: _fits(replace(setup, context=context), usable, needed), known
    )


def _fits(setup: Setup, usable: int, needed: MemoryOf) -> bool:
    total = total_bytes(setup, needed)
    return total is not None and total <= usable


def likely_limit(usable: int, total: Callable[[int], int], probes: tuple[int, int]) -> int:
    """A size close to the largest that fits, for a search to begin with; at least 1.

    A line through the totals of two sizes, and a second line through the first and that limit.

    Args:
        usable: The bytes that may be needed.
        total: The bytes that a size needs; they grow about linearly.
        probes: Two sizes, the smaller first.
    """
    first, second = probes
    needed = total(first)
    for _ in range(2):
        per_one = (total(second) - needed) / (second - first)
        if per_one <= 0:
            break
        size = first + int((usable - needed) / per_one)
        if size <= first:
            return max(size, 1)
        second = size
    return second


def _largest(most: int, first: int, is_ok: Callable[[int], bool], known: int = 0) -> Limit:
    """The largest number up to `most` that satisfies a monotonic condition, as `known` does.

    From `first` with steps that double until the condition changes, then by bisection.
    """
    low, high = min(known, most), most + 1
    size, step = min(max(first, low + 1), most), 1
    try:
        while high - low > 1:
            if is_ok(size):
                low = size
                size = low + step if high > most else (low + high) // 2
            else:
                high = size
                size = high - step if low == 0 else (low + high) // 2
            size = min(max(size, low + 1), high - 1)
            step *= 2
    except WorkLimitReached:
        return Limit(low, stopped=True)
    return Limit(low)


def _binds(memory: Memory, usable: int) -> str | None:
    so_far = 0
    for name, nbytes in _parts(memory).items():
        so_far += nbytes
        if so_far > usable:
            return name
    return None


def _parts(memory: Memory) -> dict[str, int]:
    """What a device must have room for, that which does not depend on batch and context first."""
    if memory.step is not None:
        alive = memory.step.alive
        return {
            "weights": memory.weights,
            "buffers": memory.buffers,
            "context": memory.context,
            "optimizer": alive.optimizer,
            "gradients": alive.gradients,
            "saved": alive.saved,
            "temporaries": alive.temporaries,
            "reserved": memory.required - memory.context - memory.allocated,
        }
    return {
        "weights": memory.weights,
        "buffers": memory.buffers,
        "context": memory.context,
        "activations": memory.activations,
        "cache": memory.cache + memory.replaced,
    }
