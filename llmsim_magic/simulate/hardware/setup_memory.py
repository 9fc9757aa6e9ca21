"""Memory of a model for any batch, context, dtypes and parallel layout."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from llmsim_magic.analyses.formulas.polynomials import Formula, Grid, formula
from llmsim_magic.analyses.memory.capacity import Setup, WorkLimitReached
from llmsim_magic.analyses.memory.memory import (
    Memory,
    PassActivations,
    activation_bytes,
    cache_bytes,
    memory,
)
from llmsim_magic.records.errors import InvalidValue, LlmsimError
from llmsim_magic.records.hardware.runtime import Runtime
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import TRAIN, IsCancelled, Workload, never_cancelled
from llmsim_magic.simulate.models.recipes import (
    ModelRecipe,
    Progress,
    model_recipe,
    no_progress,
    rebuilt_recipe,
)
from llmsim_magic.simulate.models.workloads import Tracer, context_limits
from llmsim_magic.simulate.request import Build
from llmsim_magic.simulate.sweeps.symbolic_records import evaluate_or_trace
from llmsim_magic.simulate.sweeps.workload_tracer import FAR_CONTEXTS, WorkloadTracer

_MAX_LOOKUPS = 4  # of cache sizes by trace, before a formula is derived
_MAX_TRACED_TOKENS = 2**22
_MAX_TRACED_BATCH = 64  # a model that reads packed images one by one makes more kernels with each
_REPLAYED = 2  # kernels of a training step that are recorded in the time of one of inference
_MAX_SCANNED = 512  # tokens that are fast to trace even if each runs kernels of its own


@dataclass
class SetupMemory:
    """The memory of a model for any batch, context, dtypes and parallel layout.

    Traces and memory figures are cached. Cache sizes come from a formula if one holds at every
    traced point, and from a trace if none does.

    Attributes:
        model: a hub id, a path, a config or a live module.
        build: how the model is built.
        recipes: known recipes of the model, by parallel layout.
        progress: called with a message before each trace.
        cancelled: returns True to stop a trace.
    """

    model: Any
    build: Build = field(default_factory=Build)
    recipes: dict[Parallel, ModelRecipe] = field(default_factory=dict)
    progress: Progress = no_progress
    cancelled: IsCancelled = never_cancelled
    _kernels_left: int | None = field(default=None, init=False)
    _errors: dict[Parallel, LlmsimError] = field(default_factory=dict, init=False)
    _traces: dict[tuple[Parallel, Workload], Trace] = field(default_factory=dict, init=False)
    _memories: dict[tuple[Setup, Runtime], Memory] = field(default_factory=dict, init=False)
    _lookups: Counter[tuple[Parallel, str, str | None]] = field(default_factory=Counter, init=False)
    _caches: dict[tuple[Parallel, str, str | None], Formula | None] = field(
        default_factory=dict, init=False
    )
    _activations: dict[tuple[Parallel, bool, int], Formula | None] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def whole_model_tracer(self) -> WorkloadTracer:
        """Traces workloads of the unsharded model."""
        limits = context_limits(self._recipe(Parallel()))
        return WorkloadTracer(self.tracer(Parallel()), limits.positions, limits.declared)

    @property
    def longest(self) -> int | None:
        """The longest context in tokens that the model supports; None if it has no limit."""
        tracer = self.whole_model_tracer
        known = [n for n in (tracer.longest, tracer.declared) if n is not None]
        return min(known, default=None)

    @contextmanager
    def reporting(self, progress: Progress, cancelled: IsCancelled) -> Iterator[None]:
        """Reports each trace until the context ends, and stops one that is cancelled."""
        self.progress, self.cancelled = progress, cancelled
        try:
            yield
        finally:
            self.progress, self.cancelled = no_progress, never_cancelled

    def needed(self, setup: Setup, runtime: Runtime) -> Memory:
        """The memory of one rank of the pipeline stage that needs the most.

        The cache is that after a pass of the setup's phase.

        Raises:
            InvalidValue: a context longer than `longest_in` says, an unknown dtype, or a number of
                devices that the model's parallel plan does not allow.
        """
        key = (setup, runtime)
        if key not in self._memories:
            self._memories[key] = self._largest_stage(setup, runtime)
        return self._memories[key]

    def _largest_stage(self, setup: Setup, runtime: Runtime) -> Memory:
        self.require_context(setup)
        return max(self.by_stage(setup, runtime), key=lambda memory: memory.required)

    def require_context(self, setup: Setup) -> None:
        """Raise `InvalidValue` for a context longer than the model supports."""
        longest = self.longest_in(setup)
        if longest is not None and setup.context > longest:
            raise InvalidValue(
                f"context {setup.context:,} exceeds the model's maximum of {longest:,} tokens"
            )

    def longest_in(self, setup: Setup) -> int | None:
        """The longest context of setups like this one, in tokens; None without a limit.

        Training may extend the context that a config declares: a step reads what was asked for,
        unless the model has a table of positions that ends.
        """
        has_table = self.whole_model_tracer.longest is not None
        if self.longest is None or setup.phase != TRAIN or has_table:
            return self.longest
        return max(self.longest, setup.context)

    def by_stage(self, setup: Setup, runtime: Runtime) -> list[Memory]:
        """The memory of one rank of each pipeline stage."""
        stages = (replace(setup.parallel, stage=stage) for stage in range(setup.parallel.pp))
        return [self._stage_memory(replace(setup, parallel=stage), runtime) for stage in stages]

    def _stage_memory(self, setup: Setup, runtime: Runtime) -> Memory:
        """Activations of one chunk of prefill, and the cache of the whole batch; or of a step."""
        trace = self.tracer(setup.parallel)
        if setup.phase == TRAIN:
            return memory(
                trace(Workload(TRAIN, setup.batch, setup.context)),
                weight_dtype=setup.weight_dtype,
                kv_dtype=setup.kv_dtype,
                runtime=runtime,
            )
        most = runtime.chunk_tokens
        workload = Workload("prefill", setup.batch, setup.context)
        is_chunked = False
        if most and setup.batch * setup.context > most:
            # A model without a cache reads a prompt whole.
            is_chunked = bool(trace(Workload("prefill", 1, 1)).cache)
        if is_chunked:
            workload = Workload("prefill", 1, min(most, self.longest or most))
        traced, activations = self._affordable_trace(workload, setup.parallel, runtime)
        found = memory(
            traced,
            weight_dtype=setup.weight_dtype,
            kv_dtype=setup.kv_dtype,
            runtime=runtime,
            activations=activations,
        )
        if not traced.cache or not (is_chunked or setup.phase == "decode" or activations):
            return found
        return replace(found, cache=self._cache_bytes(setup, trace))

    def _affordable_trace(
        self, workload: Workload, parallel: Parallel, runtime: Runtime
    ) -> tuple[Trace, PassActivations | None]:
        """The trace of a pass, or of a shorter one if the pass is a scan that takes too long.

        With a shorter one come the activations of the pass itself, by a formula.
        """
        trace = self.tracer(parallel)
        if not self._is_long_scan(workload.context):
            return trace(workload), None
        affordable = self.whole_model_tracer.longest_affordable or workload.context
        key = (parallel, runtime.own_attention, workload.batch)
        if key not in self._activations:
            self._activations[key] = _long_scan_activations(
                trace, workload.batch, affordable, runtime
            )
        by_context = self._activations[key]
        if by_context is None:
            return trace(workload), None
        nbytes = int(by_context.at((workload.batch, workload.context)))
        return trace(replace(workload, context=affordable)), PassActivations(workload, nbytes)

    def _is_long_scan(self, context: int) -> bool:
        """Whether each token runs kernels of its own, and this context takes too long to trace."""
        if context <= _MAX_SCANNED:
            return False
        affordable = self.whole_model_tracer.longest_affordable
        return affordable is not None and context > affordable

    def _cache_bytes(self, setup: Setup, trace: Tracer) -> int:
        """Bytes of the cache of the whole batch.

        A formula costs a few traces, so it is derived only after several look-ups, or for a pass
        that takes long to trace.
        """
        key = (setup.parallel, setup.phase, setup.kv_dtype)
        self._lookups[key] += 1
        use_formula = (
            self._lookups[key] > _MAX_LOOKUPS
            or setup.batch > _MAX_TRACED_BATCH
            or setup.batch * setup.context > _MAX_TRACED_TOKENS
            or self._is_long_scan(setup.context)
        )
        if use_formula and key not in self._caches:
            value = partial(cache_bytes, dtype=setup.kv_dtype)
            self._caches[key] = self._formula(trace, setup.phase, value, FAR_CONTEXTS[-1])
        known = self._caches.get(key)
        if known is not None:
            return int(known.at((setup.batch, setup.context)))
        whole = Workload(setup.phase, setup.batch, setup.context)
        return cache_bytes(trace(whole), setup.kv_dtype)

    def _formula(
        self, trace: Tracer, phase: str, value: Callable[[Trace], int], longest: int
    ) -> Formula | None:
        """A quantity of a rank's pass as a formula of batch and context; None if none fits."""
        whole = self.whole_model_tracer
        tracer = WorkloadTracer(trace, self.longest, whole.declared)
        return tracer.formula(phase, value, longest)

    def stages(self, parallel: Parallel, workload: Workload) -> list[Trace]:
        """The trace of the first rank of each pipeline stage.

        Raises:
            InvalidValue: the model has no parallel plan, or the layout does not divide it.
        """
        each = (replace(parallel, stage=stage) for stage in range(parallel.pp))
        return [self.tracer(stage)(workload) for stage in each]

    def tracer(self, parallel: Parallel) -> Tracer:
        """A function that traces a workload of the model in a parallel layout, with a cache."""

        def trace(workload: Workload) -> Trace:
            key = parallel, workload
            if key not in self._traces:
                self._traces[key] = self._new_trace(parallel, workload)
            return self._traces[key]

        return trace

    def _new_trace(self, parallel: Parallel, workload: Workload) -> Trace:
        if self._kernels_left is not None and self._kernels_left <= 0:
            raise WorkLimitReached
        recipe = self._recipe(parallel)
        self.progress(f"tracing {workload}")
        trace = evaluate_or_trace(recipe, workload, replay=True, cancelled=self.cancelled)
        if self._kernels_left is not None:
            kernels = len(trace.recorded.kernels)
            self._kernels_left -= kernels if trace.training is None else kernels // _REPLAYED
        return trace

    def _new_recipe(self, parallel: Parallel) -> ModelRecipe:
        build = replace(self.build, parallel=parallel)
        if self.recipes:
            return rebuilt_recipe(next(iter(self.recipes.values())), self.model, build)
        return model_recipe(self.model, build)

    def _recipe(self, parallel: Parallel) -> ModelRecipe:
        if parallel in self._errors:
            raise self._errors[parallel]
        try:
            if parallel not in self.recipes:
                self.recipes[parallel] = self._new_recipe(parallel)
            context_limits(self.recipes[parallel])
        except LlmsimError as error:
            self._errors[parallel] = error
            raise
        return self.recipes[parallel]


def _long_scan_activations(
    trace: Tracer, batch: int, longest: int, runtime: Runtime
) -> Formula | None:
    """Peak bytes of activations as a formula of the context; None if no formula fits.

    Passes of three contexts up to `longest` determine it, and one of a fourth checks it.
    """
    grid = Grid((batch,), (longest // 2, 3 * longest // 4, longest))
    points = (*grid.points, (batch, longest // 4))
    values = {
        point: activation_bytes(trace(Workload("prefill", *point)), runtime) for point in points
    }
    return formula(values, grid)
