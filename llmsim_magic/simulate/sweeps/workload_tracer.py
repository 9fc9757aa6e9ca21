"""Choose the workloads that determine and check formulas, and trace them."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from llmsim_magic.analyses.formulas.polynomials import Grid, Point
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload

NEAR_GRID = Grid((2, 3), (6, 9, 13))
CHECK_POINTS: tuple[Point, ...] = ((1, 1), (5, 17), (1024, 10))
# Beyond most windows that models have, and with more tokens than their vocabularies.
FAR_BATCHES = (16, 24)
FAR_CONTEXTS = (40_000, 48_001, 56_003)
# Contexts over which a scan written in Python goes on to have more kernels: by tokens, by chunks.
SCAN_CONTEXTS = ((9, 13, 17), (13, 1_013, 2_013))
# What a long context may add to a pass of such a scan.
MAX_EXTRA_KERNELS = 2_000


@dataclass(frozen=True)
class WorkloadTracer:
    """Traces further workloads of the model that a report is of."""

    trace: Callable[[Workload], Trace]
    longest: int | None  # tokens that its position table has rows for
    declared: int | None  # tokens that its config says it is meant for

    def add(self, phase: str, traces: dict[Point, Trace], points: Iterable[Point]) -> None:
        """Trace these points too, but for those that the model cannot run."""
        for batch, context in points:
            if (batch, context) not in traces:
                with suppress(LlmsimError):
                    traces[batch, context] = self.trace(Workload(phase, batch, context))

    def long_checks(self, phase: str) -> list[Point]:
        """Where formulas are checked at length: a long context, and all that the model is for.

        And a little less, for the whole may be a multiple of what the model pads to.
        """
        farthest = self.far(phase).contexts[-1]
        declared = min(self.declared or 1, self._longest_affordable or 2**20, 2**20)
        most = max(declared - (phase == "decode"), 1)
        return [(4, farthest), (1, most), (1, max(most - 3, 1))]

    def far(self, phase: str) -> Grid:
        """Long contexts that the model can read, and soon does."""
        contexts, longest = FAR_CONTEXTS, self._longest_affordable
        if longest is not None and longest <= contexts[-1]:
            most = longest - (phase == "decode")
            contexts = (most - 10, most - 5, most)
        return Grid(FAR_BATCHES, contexts)

    @cached_property
    def _longest_affordable(self) -> int | None:
        """The longest context that is soon read, by a decode step's prefill as well.

        It is `longest`, but where each token, or each chunk of them, has kernels of its own.
        """
        for contexts in SCAN_CONTEXTS:
            more = self._kernels_per_token(contexts)
            if more:
                soon = contexts[-1] + int(MAX_EXTRA_KERNELS / more)
                return min(soon, self.longest or soon)
        return self.longest

    def _kernels_per_token(self, contexts: tuple[int, ...]) -> float:
        """With each token, in prefills of a batch that reaches all experts; 0 but in a scan."""
        kernels = [0]
        for context in contexts:
            read: dict[Point, Trace] = {}
            self.add("prefill", read, [(FAR_BATCHES[-1], context)])
            kernels.append(sum(len(trace.recorded.kernels) for trace in read.values()))
            if kernels[-1] <= kernels[-2]:
                return 0
        return (kernels[-1] - kernels[-2]) / (contexts[-1] - contexts[-2])
