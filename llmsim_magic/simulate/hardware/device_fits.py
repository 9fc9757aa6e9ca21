"""Whether forward passes fit the requested devices, and what would make them fit."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.memory.capacity import Fit, Setup
from llmsim_magic.analyses.memory.memory import Memory, memory
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.hardware.device_passes import DevicePasses
from llmsim_magic.simulate.hardware.executions import memory_runtimes
from llmsim_magic.views.notes import fit_note

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DeviceFits(DevicePasses):
    """Bytes that passes need on devices, beside those that there are."""

    _fits: dict[tuple[str, str], Fit | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def can_fit(self) -> bool:
        """Whether `fits` has rows: for devices of known memory, if batch and context can vary."""
        sizes = [device.memory_bytes for device, _ in self.devices]
        return self.planner is not None and any(size is not None for size in sizes)

    @property
    def setup(self) -> Setup:
        """Phase, batch, context, parallel layout and stored dtypes of the first pass."""
        return self._setup_of(self.traces[0])

    def _setup_of(self, trace: Trace) -> Setup:
        return Setup(
            phase=trace.workload.phase,
            batch=trace.workload.batch,
            context=trace.workload.context,
            parallel=trace.model.parallel,
            weight_dtype=self.deployment.weight_dtype,
            kv_dtype=self.deployment.kv_dtype,
            dp=1 if trace.training is None else trace.training.dp,
        )

    def holds(self, trace: Trace, device: Accelerator, runtime: str) -> bool | None:
        """Whether a device has room for a pass under a runtime; None if its memory is unknown."""
        if device.memory_bytes is None:
            return None
        own = runtimes.on(runtime, device)
        found: Memory | None = None
        if self.planner is not None:
            with suppress(LlmsimError):  # a context that the config does not declare
                found = self.planner.needed(self._setup_of(trace), own)
        if found is None:
            found = memory(
                trace,
                weight_dtype=self.deployment.weight_dtype,
                kv_dtype=self.deployment.kv_dtype,
                runtime=own,
            )
        return found.required <= own.usable_bytes(device.memory_bytes)

    @cached_property
    def passes_fit(self) -> tuple[bool | None, ...]:
        """For each of `passes`, whether its device holds it; None if its memory is unknown."""
        devices = {device.name: device for device, _ in self.devices}
        return tuple(
            self.holds(trace, devices[time.accelerator.name], time.execution.runtime)
            for trace, time in self.passes
        )

    @property
    def first_fits(self) -> bool:
        """Whether the pass that tables of one device describe fits it, as far as is known."""
        first = self.first_passes[0]
        fits = zip(self.passes, self.passes_fit, strict=True)
        return next(fit for each, fit in fits if each == first) is not False

    @cached_property
    def largest(self) -> Trace:
        """The pass of the most tokens, of the first phase: what a device has to hold."""
        first = self.traces[0].workload.phase

        def size(trace: Trace) -> tuple[int, bool]:
            workload = trace.workload
            return workload.batch * workload.context, workload.phase == first

        return max(self.traces, key=size)

    @property
    def largest_name(self) -> str:
        """The workload of `largest` in words; empty if all passes have its batch and context."""
        sizes = {(each.workload.batch, each.workload.context) for each in self.traces}
        return str(self.largest.workload) if len(sizes) > 1 else ""

    @cached_property
    def capacities(self) -> tuple[Fit, ...]:
        """For each device and runtime: bytes needed and available, and what would make it fit.

        Of the `largest` pass, on devices of known memory; remedies are traced. Empty for a module
        that was traced on given inputs, and for what no memory is predicted.
        """
        found: list[Fit | None] = []
        for device, runtime in self.places:
            with suppress(LlmsimError):
                found.append(self._fit(device, runtime))
        return tuple(each for each in found if each is not None)

    @cached_property
    def places(self) -> tuple[tuple[Accelerator, str], ...]:
        """Each device of known memory with each runtime under which the model may fit it."""
        return tuple(
            (device, runtime)
            for device, _ in self.devices
            for runtime in memory_runtimes(self.deployment, self.traces[0], device)
            if device.memory_bytes is not None
        )

    def _fit(self, device: Accelerator, runtime: str) -> Fit | None:
        if self.planner is None:
            return None
        key = (device.name, runtime)
        if key not in self._fits:
            self._fits[key] = self.planner.fit(self._setup_of(self.largest), device, runtime)
        return self._fits[key]

    @cached_property
    def larger_devices(self) -> dict[tuple[str, str], str]:
        """By device and runtime of a pass that does not fit, the smallest device that holds it."""
        found = {}
        for fit in self.capacities:
            name = None if fit.runs else self._larger_device(fit)
            if name is not None:
                found[fit.device, fit.runtime] = name
        return found

    def _larger_device(self, fit: Fit) -> str | None:
        """The device of the same maker with the least memory that runs the setup.

        Its memory is at least as fast, so that it is no smaller machine in another way.
        """
        own = next(device for device, _ in self.devices if device.name == fit.device)
        others = [
            (device.memory_bytes, device)
            for device in map(accelerators.find, accelerators.entries())
            if device.memory_bytes is not None
            and (device.vendor, device.kind) == (own.vendor, own.kind)
            and device.memory_bytes > (own.memory_bytes or 0)
            and (device.bandwidth_bytes_per_s or 0) >= (own.bandwidth_bytes_per_s or 0)
        ]
        runtimes_there = partial(memory_runtimes, self.deployment, self.largest)
        for _, device in sorted(others, key=lambda each: each[0]):
            if (
                fit.runtime in runtimes_there(device)
                and refusal(self.largest, device) is None
                and self.holds(self.largest, device, fit.runtime)
            ):
                return device.name
        return None

    @cached_property
    def fits(self) -> "pd.DataFrame":
        """One row per device and runtime: whether the model fits, remedies, largest sizes.

        Of the `largest` pass. A device that does not compute in the dtype has no largest sizes.

        Raises:
            LlmsimError: the module was traced on given inputs.
        """
        if self.planner is None:
            raise LlmsimError(
                "fits is not available: a module that was traced on given inputs has no batch "
                "and context to vary"
            )
        from llmsim_magic.views.tables.columns import integers
        from llmsim_magic.views.tables.memory import capacity_table

        planner, setup, places = self.planner, self._setup_of(self.largest), self.places
        table = capacity_table(self._fit(*place) for place in places)
        refuses = [refusal(self.largest, device) is not None for device, _ in places]
        for name, search in (
            ("largest_batch", planner.largest_batch),
            ("longest_context", planner.longest_context),
        ):
            table[name] = integers(
                [
                    None if is_refused else search(setup, *place)
                    for place, is_refused in zip(places, refuses, strict=True)
                ]
            )
        return table

    @property
    def misfits(self) -> tuple[str, ...]:
        """A sentence for each device and runtime that does not run it: why, and remedies."""
        held: dict[str, list[str]] = {}
        for fit in self.capacities:
            if fit.runs:
                held.setdefault(fit.device, []).append(fit.runtime)
        sentences = (
            fit_note(
                fit,
                self.larger_devices.get((fit.device, fit.runtime)),
                held.get(fit.device, ()),
                self.largest_name,
            )
            for fit in self.capacities
            if not fit.runs
        )
        return tuple(dict.fromkeys(sentences))  # a refusal is the same under each runtime
