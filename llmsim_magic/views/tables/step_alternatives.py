"""Tables of training steps under other options, and of the devices that hold a step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from llmsim_magic.records.deferred_interrupt import defer_interrupt
from llmsim_magic.views.tables.columns import floats, integers, texts

_AS_ASKED = "as asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long a training step takes: seconds with their band, its MFU, and what limits it."""

    seconds: float
    low: float
    high: float
    mfu: float | None
    binds: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOnDevice:
    """A training step on a device.

    Attributes:
        device: The name of the device.
        runtime: What executes the step.
        launch: How its kernels are started.
        devices: How many devices take the step together.
        tokens: The tokens that all of them read in a step.
        allocated: The peak of allocated bytes on each.
        required: The bytes that each needs.
        usable: What it has, in bytes; None if its memory is unknown.
        time: How long a step takes; None where it is not predicted.
        change: The options that were changed of the step that was asked for; empty if none was.
        error: Why there is no time.
        refusal: Why the device does not run the step though it may hold it; None if it does.
    """

    device: str
    runtime: str
    launch: str
    devices: int
    tokens: int
    allocated: int
    required: int
    usable: int | None
    time: StepTime | None
    change: str = ""
    error: str = ""
    refusal: str | None = None

    @property
    def is_as_asked(self) -> bool:
        return not self.change

    @property
    def fits(self) -> bool | None:
        """Whether each device holds its part; None if its memory is unknown."""
        return None if self.usable is None else self.required <= self.usable

    @property
    def rate_of_each(self) -> float | None:
        """Tokens per second of a device; None without a time."""
        return 1 / self.cost if self.time is not None and self.time.seconds else None

    @property
    def cost(self) -> float:
        """Seconds of a device for each token; infinite without a time."""
        seconds = float("inf") if self.time is None else self.time.seconds
        return seconds * self.devices / max(self.tokens, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """A device for a training step.

    Attributes:
        step: The step on it.
        largest_micro_batch: The most sequences of a micro-batch; None if its memory is unknown, or
            if it does not compute in the dtype.
        longest_context: The most tokens of a sequence; None likewise.
        sharded: The fewest devices that hold the step by data parallelism, and the lowest stage
            of ZeRO that does; None where one device does, or where none do.
    """

    step: StepOnDevice
    largest_micro_batch: int | None
    longest_context: int | None
    sharded: tuple[int, int] | None

    def missing(self, most: int | None) -> Iterator[str]:
        """Why figures of this device are missing, in words.

        Args:
            most: The most devices that were tried to shard the step over; None if it cannot be.
        """
        step = self.step
        if step.refusal is not None:
            yield "no largest step, and no devices with ZeRO, as it does not compute in the dtype"
            return
        if step.fits is None:
            yield "memory is what is installed, so whether the step fits is unknown"
        elif step.fits:
            yield "no devices with ZeRO, as one device holds the step"
        elif self.sharded is None:
            yield _unsharded(most)
        if step.error:
            yield f"no time: {step.error}"
        elif step.fits is False:
            yield "no time, as the step does not fit"


def _unsharded(most: int | None) -> str:
    if most is None:
        return "no devices with ZeRO, as the step cannot be sharded over more"
    return f"no devices with ZeRO, as {most} do not hold the step under stage 3 either"


def cheapest_first(rows: Iterable[StepOnDevice]) -> list[StepOnDevice]:
    """Steps in order of what they cost: those that fit, by tokens per second of a device.

    Those that do not fit follow, the one of the lowest peak first, and those that the device
    refuses.
    """
    return sorted(
        rows,
        key=lambda row: (
            row.refusal is not None,
            row.fits is False,
            row.allocated if row.fits is False or row.refusal is not None else row.cost,
        ),
    )


@defer_interrupt
def alternatives_table(rows: Sequence[StepOnDevice]) -> pd.DataFrame:
    """One row per device and change of the step, in the order given.

    Returns:
        A table of bytes on each device, of the seconds of a step with their band, and of tokens
        per second, on all `devices` together and for each. Times of what does not fit are
        hypothetical.
    """
    columns: dict[str, Any] = {
        "device": [row.device for row in rows],
        "change": texts([row.change or _AS_ASKED for row in rows]),
        "launch": texts([row.launch for row in rows]),
        **_fit_columns(rows),
        **_times(rows),
        "tokens_per_s_per_device": floats([row.rate_of_each for row in rows]),
    }
    return pd.DataFrame(columns)


@defer_interrupt
def step_sizing_table(sizes: Sequence[StepSize]) -> pd.DataFrame:
    """One row per device: whether it holds a training step, its largest sizes, and its time.

    Returns:
        A table of bytes on each device. `devices_with_zero` are the fewest, a power of two, that
        hold the step by data parallelism where one does not, and `zero` the lowest stage that does.
        Times are of what fits.
    """
    rows = [size.step for size in sizes]
    sharded = [size.sharded or (None, None) for size in sizes]
    times = {f"train_{name}".replace("_time", ""): each for name, each in _times(rows).items()}
    columns: dict[str, Any] = {
        "device": [row.device for row in rows],
        "runtime": texts([row.runtime for row in rows]),
        "launch": texts([row.launch for row in rows]),
        **_fit_columns(rows),
        "largest_micro_batch": integers([size.largest_micro_batch for size in sizes]),
        "longest_context": integers([size.longest_context for size in sizes]),
        "devices_with_zero": integers([devices for devices, _ in sharded]),
        "zero": integers([stage for _, stage in sharded]),
        **times,
    }
    return pd.DataFrame(columns)


def _fit_columns(rows: Sequence[StepOnDevice]) -> dict[str, Any]:
    return {
        "devices": integers([row.devices for row in rows]),
        "fits": pd.array([row.fits for row in rows], dtype="boolean"),
        "refusal": texts([row.refusal for row in rows]),
        "peak_bytes": integers([row.allocated for row in rows]),
        "total_bytes": integers([row.required for row in rows]),
        "usable_bytes": integers([row.usable for row in rows]),
    }


def _times(rows: Sequence[StepOnDevice]) -> dict[str, Any]:
    """Seconds of a step with their band, tokens per second, MFU, and what limits the time."""
    times = [row.time for row in rows]
    return {
        "time_s": floats([None if time is None else time.seconds for time in times]),
        "time_low_s": floats([None if time is None else time.low for time in times]),
        "time_high_s": floats([None if time is None else time.high for time in times]),
        "tokens_per_s": floats(
            [
                row.tokens / row.time.seconds if row.time and row.time.seconds else None
                for row in rows
            ]
        ),
        "mfu": floats([None if time is None else time.mfu for time in times]),
        "binds": texts([None if time is None else time.binds for time in times]),
    }
