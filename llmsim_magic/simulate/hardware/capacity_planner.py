"""Whether a model fits a device, and the largest setup that fits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from llmsim_magic.analyses.cost.refused_dtypes import refusal
from llmsim_magic.analyses.memory.capacity import (
    MAX_BATCH,
    Fit,
    Limit,
    Setup,
    WorkLimitReached,
    fit,
    largest_batch,
    likely_limit,
    longest_context,
)
from llmsim_magic.analyses.memory.remedies import MAX_STAGES, changed, with_remedies
from llmsim_magic.analyses.memory.size_search import SizeSearch
from llmsim_magic.catalog import runtimes
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.accelerator import Accelerator
from llmsim_magic.records.hardware.execution import RUNTIMES
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.workload import TRAIN, Workload
from llmsim_magic.simulate.hardware.setup_memory import SetupMemory

_PROBES = {"batch": (4, 16), "context": (256, 1024)}  # whose needs a search extrapolates
_MOST_CONTEXT = 2**20  # tokens, of a model without a limit
_MAX_SEARCH_KERNELS = 40_000  # that a search for the largest batch or context may record
_MAX_SEARCH_STEPS = 32  # whose kernels a search for the largest training step may record
_ROUNDING = 2 * 20 * 2**20  # bytes: two segments, which one batch may take and a larger one not


@dataclass
class CapacityPlanner(SetupMemory):
    """Whether a model fits a device in a setup, and the largest batch and context that fit.

    Attributes:
        notes: searches that stopped before their end, in sentences.
    """

    notes: list[str] = field(default_factory=list, init=False)
    _searches: dict[tuple[Setup, str, str], SizeSearch] = field(default_factory=dict, init=False)

    def fit(
        self,
        setup: Setup,
        device: Accelerator,
        runtime: str,
        *,
        remedies: bool = True,
        max_stages: int = MAX_STAGES,
    ) -> Fit | None:
        """Check whether a setup fits a device.

        Args:
            setup: batch, context, parallel layout and stored dtypes.
            device: the accelerator.
            runtime: name of a runtime in the catalogue.
            remedies: also look for changes that would make a setup fit that does not.
            max_stages: the largest number of pipeline stages among these changes.

        Returns:
            The fit, or None if the memory of the device is unknown.

        Raises:
            InvalidValue: a context longer than the model supports, an unknown dtype or runtime, or
                a number of devices that the model's parallel plan does not allow.
        """
        own = runtimes.on(runtime, device)
        needed = partial(self.needed, runtime=own)
        found = fit(setup, device, own, needed)
        if found is None:
            return None
        found = replace(found, refusal=self._refusal(setup, device))
        if not remedies:
            return found
        with self._bounded_search(setup):
            first = partial(self._first_guess, setup, own, found.usable)
            return with_remedies(found, needed, self.longest_in(setup), first, max_stages)

    def _refusal(self, setup: Setup, device: Accelerator) -> str | None:
        """Why a device does not run the model in a setup; the size of that makes no difference."""
        known = (
            trace
            for (parallel, workload), trace in self._traces.items()
            if (parallel, workload.phase) == (setup.parallel, setup.phase)
        )
        trace = next(known, None)
        if trace is None:
            workload = Workload(setup.phase, setup.batch, setup.context)
            trace = self.tracer(setup.parallel)(workload)
        return refusal(trace, device)

    def largest_batch(self, setup: Setup, device: Accelerator, runtime: str) -> int | None:
        """The largest batch that fits at the setup's context; None if the memory is unknown.

        Of a training step, in as many micro-batches as its options ask for.
        """
        return self._limit(setup, device, runtime, "batch", largest_batch)

    def longest_context(self, setup: Setup, device: Accelerator, runtime: str) -> int | None:
        """The longest context in tokens that fits at the setup's batch, up to the model's limit."""
        search = partial(longest_context, most=self.longest_in(setup) or _MOST_CONTEXT)
        return self._limit(setup, device, runtime, "context", search)

    def _limit(
        self,
        setup: Setup,
        device: Accelerator,
        runtime: str,
        what: str,
        search: Callable[..., Limit],
    ) -> int | None:
        """The result of a search, from a first guess on."""
        if device.memory_bytes is None:
            return None
        known = 0
        with suppress(LlmsimError):  # a context that only a smaller one of the search replaces
            given = self.fit(setup, device, runtime, remedies=False)
            if given is not None and not given.fits_empty:
                return 0
            if given is not None and given.fits:
                known = setup.batch if what == "batch" else setup.context
        own = runtimes.on(runtime, device)
        usable = own.usable_bytes(device.memory_bytes)
        with self._bounded_search(setup):
            first = self._first_guess(setup, own, usable, what)
            needed = partial(self.needed, runtime=own)
            found = search(setup, usable, needed, first=first, known=known)
        if found.stopped:
            self.notes.append(
                f"{device.name}, {RUNTIMES[runtime]}: the search for the largest {what} stopped at "
                f"{found.size}, because larger ones take too long to trace; more may fit"
            )
        return found.size

    def _first_guess(self, setup: Setup, runtime: Runtime, usable: int, what: str) -> int:
        """Where a search begins: where the runtime reads prompts in chunks, or a likely limit.

        The sizes of training steps are shared by all devices, and the guess is the answer.

        From the first chunk on only the cache grows, for which there is a formula. Without chunks
        each size is a trace of its own, so that few should be tried.
        """
        if setup.phase == TRAIN:
            return self._largest_step(setup, runtime, usable, what)
        if runtime.chunk_tokens:
            other = setup.context if what == "batch" else setup.batch
            return runtime.chunk_tokens // max(other, 1) + 1
        most = self.longest or _MOST_CONTEXT

        def total(size: int) -> int:
            if what == "batch":
                return self.needed(replace(setup, batch=size), runtime).required
            return self.needed(replace(setup, context=min(size, most)), runtime).required

        with suppress(WorkLimitReached, LlmsimError):
            return likely_limit(usable, total, _PROBES[what])
        return 1

    def _largest_step(self, setup: Setup, runtime: Runtime, usable: int, what: str) -> int:
        """The largest batch or context of a training step that was found to fit, or 1."""
        is_batch = what == "batch"
        each = self.build.training.accumulate if is_batch and self.build.training else 1

        def needed(size: int) -> int:
            found = self.needed(changed(setup, ((what, size * each),)), runtime)
            return found.required - found.context

        key = (changed(setup, ((what, 1),)), runtime.name, what)
        if key not in self._searches:
            most = MAX_BATCH // each if is_batch else self.longest_in(setup) or _MOST_CONTEXT
            first = min(getattr(setup, what) // each, most)
            self._searches[key] = SizeSearch(needed, most, first, _ROUNDING if is_batch else 0)
        left = usable - runtime.context(setup.parallel.ranks)
        return max(self._searches[key].largest(left).size * each, 1)

    @contextmanager
    def _bounded_search(self, setup: Setup) -> Iterator[None]:
        """Limits the kernels that traces may record until the context ends.

        A training step has many, but no more for a larger batch unless the model is a scan.
        """
        most = _MAX_SEARCH_KERNELS
        if setup.phase == TRAIN:
            with suppress(LlmsimError):
                step = self.tracer(setup.parallel)(Workload(TRAIN, setup.batch, setup.context))
                most = _MAX_SEARCH_STEPS * len(step.recorded.kernels)
        self._kernels_left = most
        try:
            yield
        finally:
            self._kernels_left = None
