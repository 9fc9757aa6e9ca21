"""Choose the workloads that determine and check formulas, and trace them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from llmsim_magic.analyses.formulas.polynomials import Formula, Grid, Point, formula
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import PHASES, TRAIN, Workload

NEAR_GRID = Grid((2, 3), (6, 9, 13))
CHECK_BATCH = 1024  # enough to reach every expert of a mixture
# Longer than most attention windows, and more tokens than most vocabularies.
FAR_BATCHES = (16, 24)
FAR_CONTEXTS = (40_000, 48_001, 56_003)
# For a model whose kernels grow with the batch: it takes as long as it has tokens.
PACKED_FAR_CONTEXTS = (8_000, 9_001, 10_003)
# Contexts that detect a scan written in Python: its kernel count grows with tokens or with chunks.
SCAN_CONTEXTS = ((9, 13, 17), (13, 1_013, 2_013))
# Kernels that a longer context may add to a pass of such a scan, and a larger batch to one that
# reads packed images one by one, to limit the time of a trace.
MAX_EXTRA_KERNELS = 2_000


@dataclass(frozen=True)
class WorkloadTracer:
    """Traces further workloads of one model.

    Attributes:
        trace: traces one workload.
        longest: rows of the position table, the longest context in tokens; None if unlimited.
        declared: longest context in tokens that the config declares; None if it declares none.
        known: traces of the model that exist already.
        reads: the phase that reads every token of the context: `prefill`, or `train` of a step.
    """

    trace: Callable[[Workload], Trace]
    longest: int | None
    declared: int | None
    known: tuple[Trace, ...] = ()
    reads: str = PHASES[0]

    def add(self, phase: str, traces: dict[Point, Trace], points: Iterable[Point]) -> None:
        """Add the traces of (batch, context) points; skip points that the model cannot run."""
        for batch, context in points:
            if (batch, context) not in traces:
                with suppress(LlmsimError):
                    traces[batch, context] = self.trace(Workload(phase, batch, context))

    def add_phases(
        self, traces: Mapping[str, dict[Point, Trace]], points: Mapping[str, Iterable[Point]]
    ) -> None:
        """As `add` for each phase; a decode step follows the prefill whose cache it reuses."""
        wanted = {phase: set(each) for phase, each in points.items()}
        for point in sorted(set().union(*wanted.values())):
            for phase in (*PHASES, TRAIN):
                if point in wanted.get(phase, ()):
                    self.add(phase, traces[phase], [point])

    def checks(self, phase: str) -> list[Point]:
        """Points that check formulas, with the largest batch that is fast to trace."""
        return [(1, 1), (5, 17), (min(CHECK_BATCH, self._largest_affordable_batch(phase)), 10)]

    def _largest_affordable_batch(self, phase: str) -> int:
        """The largest batch that is fast to trace; `CHECK_BATCH` if kernels do not grow with it."""
        if self._has_constant_kernels(phase):
            return CHECK_BATCH
        traces: dict[Point, Trace] = {}
        self.add(phase, traces, [(batch, 10) for batch in FAR_BATCHES])
        counts = [len(trace.recorded.kernels) for trace in traces.values()]
        fewer, more = FAR_BATCHES
        if len(counts) < len(FAR_BATCHES) or counts[1] <= counts[0]:
            return CHECK_BATCH
        per_sequence = (counts[1] - counts[0]) / (more - fewer)
        return more + int(MAX_EXTRA_KERNELS / per_sequence)

    def formula(self, phase: str, value: Callable[[Trace], int], longest: int) -> Formula | None:
        """A quantity of a pass as a formula of batch and context; None if none fits every trace.

        Args:
            phase: The phase of the passes to trace.
            value: Returns the quantity of a trace.
            longest: The context in tokens that checks a formula in which the context occurs; at
                most the longest that the model supports.
        """
        traces: dict[Point, Trace] = {}

        def found(far: Grid | None = None) -> Formula | None:
            values = {point: value(each) for point, each in traces.items()}
            return formula(values, NEAR_GRID, far) if set(NEAR_GRID.points) <= set(values) else None

        self.add(phase, traces, (*NEAR_GRID.points, *self.checks(phase)))
        near = found()
        if near is not None and not near.near.depends_on_context:
            return near
        most = max(min(longest, self.longest or longest) - (phase == "decode"), 1)
        self.add(phase, traces, [(1, most)])
        near = found()
        if near is not None:
            return near
        far = self.far(phase)
        self.add(phase, traces, far.points)
        return found(far)

    def long_checks(self, phase: str) -> list[Point]:
        """Points that check formulas at long contexts, up to the longest the model supports.

        One point is slightly shorter, because the longest may be a multiple of a padding size.
        """
        farthest = self.far(phase).contexts[-1]
        declared = min(self.declared or 1, self.longest_affordable or 2**20, 2**20)
        most = max(declared - (phase == "decode"), 1)
        return [(4, farthest), (1, most), (1, max(declared - 4, 1))]

    def far(self, phase: str) -> Grid:
        """A grid of long contexts that the model supports and that are fast to trace."""
        if self._largest_affordable_batch(phase) < CHECK_BATCH:
            return Grid(NEAR_GRID.batches, PACKED_FAR_CONTEXTS)
        contexts, longest = FAR_CONTEXTS, self.longest_affordable
        if longest is not None and longest <= contexts[-1]:
            most = longest - (phase == "decode")
            contexts = (most - 10, most - 5, most)
        return Grid(FAR_BATCHES, contexts)

    @cached_property
    def longest_affordable(self) -> int | None:
        """The longest context that is fast to trace.

        It is `longest`, unless the number of kernels grows with the context, as in a scan.
        """
        if self._has_constant_kernels(self.reads, SCAN_CONTEXTS[-1][1]):
            return self.longest
        for contexts in SCAN_CONTEXTS:
            more = self._kernels_per_token(contexts)
            if more:
                soon = contexts[-1] + int(MAX_EXTRA_KERNELS / more)
                return min(soon, self.longest or soon)
        return self.longest

    def _has_constant_kernels(self, phase: str, reach: int = 0) -> bool:
        """Whether several batches and contexts, up to `reach` tokens, run equally many kernels.

        Only from known traces, and one more for `reach`.
        """
        known = [trace for trace in self.known if trace.workload.phase == phase]
        batches, contexts = (
            {getattr(trace.workload, name) for trace in known} for name in ("batch", "context")
        )
        if min(len(batches), len(contexts)) < 2:
            return False
        counts = {len(trace.recorded.kernels) for trace in known}
        if len(counts) == 1 and max(contexts) < reach:
            further: dict[Point, Trace] = {}
            self.add(phase, further, [(FAR_BATCHES[-1], reach)])
            counts |= {len(trace.recorded.kernels) for trace in further.values()}
        return len(counts) == 1

    def _kernels_per_token(self, contexts: tuple[int, ...]) -> float:
        """Kernels that each further token adds to a prefill; 0 if the model has no scan.

        The batch is large enough to reach every expert.
        """
        kernels = [0]
        for context in contexts:
            read: dict[Point, Trace] = {}
            self.add(self.reads, read, [(FAR_BATCHES[-1], context)])
            kernels.append(sum(len(trace.recorded.kernels) for trace in read.values()))
            if kernels[-1] <= kernels[-2]:
                return 0
        return (kernels[-1] - kernels[-2]) / (contexts[-1] - contexts[-2])
