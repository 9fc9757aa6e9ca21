"""Choose the workloads that determine and check the symbolic traces of a model, and trace them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from llmsim_magic.analyses.formulas.fit_region import Reading
from llmsim_magic.analyses.formulas.polynomials import Point
from llmsim_magic.analyses.formulas.regions import FEW_TOKENS, MIN_CONTEXTS, boundaries, fit_regions
from llmsim_magic.analyses.formulas.symbolic_trace import Region, SymbolicTrace
from llmsim_magic.records.errors import LlmsimError, NoDecode
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import PHASES, Workload

if TYPE_CHECKING:
    from llmsim_magic.capture.models.meta_model import MetaModel

_UNDECLARED = 2**16  # tokens, the longest context of a model that declares none
_MOST = 2**20
_LARGE = 1024  # sequences, enough to reach every expert of a mixture
_MOST_TOKENS = 2**23  # that are fast to trace at once: token ids are computed on the host
_SHORTEST = 6
_PROBES = ((2, 6), (3, 9), (5, 17))
# Powers of two are sizes in many configs, and the contexts that people choose.
_SPREAD = ((16, 16), (4, 128), (3, 1025), (8, 2048), (2, 4096), (3, 16_384), (2, 32_768))
_ONE_SEQUENCE = (6, 17, 256, 512, 1024, 8192)
_ONE_TOKEN = (2, 3, 16, _LARGE)
_BEFORE_END = 4  # the longest context may be a multiple of a padding size, this many less is not
_MAX_GROWTH = 1.5  # of the kernels of a pass; more is a loop over tokens or sequences
_MAX_ROUNDS = 3
FEWEST_POINTS = 20  # that any derivation traces
_MAX_PASSES = 60  # of a phase; gaps between its regions are left to tracing then
_BOUNDARY = re.compile(r"window|chunk|block|position|length|context|seq|stride|bucket|axial")
_MAX_BOUNDARIES = 2  # checked in the first round


@dataclass(frozen=True)
class Limits:
    """What the config of a model says about contexts.

    Attributes:
        longest: the longest context in tokens to check.
        boundaries: contexts at which the model probably changes, such as a window.
        integers: all numbers in the config and in the modules.
    """

    longest: int
    boundaries: tuple[int, ...] = ()
    integers: frozenset[int] = frozenset()


@dataclass
class _Phase:
    """The passes of one phase that were traced for its formulas.

    `is_done` says that no more are worth it: their kernels grow with the workload.
    """

    phase: str
    limits: Limits
    readings: dict[Point, Reading] = field(default_factory=dict)
    failed: set[Point] = field(default_factory=set)
    regions: tuple[Region, ...] = ()
    is_done: bool = False

    @property
    def longest(self) -> int:
        return max(self.limits.longest - (self.phase == "decode"), 1)

    def most(self, context: int) -> int:
        """The largest batch that is checked at a context, a power of two."""
        return min(_LARGE, max(_power_of_two(_MOST_TOKENS // context), 16))

    def first_points(self) -> Iterator[Point]:
        """The points of the first round."""
        longest, ends = self.longest, (self.longest - _BEFORE_END, self.longest)
        middle = min(longest, 4096)
        yield from _PROBES
        yield from ((batch, context) for batch, context in _SPREAD if context < ends[0])
        yield from ((2, context) for context in ends)
        yield from ((2, middle), (_LARGE, _SHORTEST), (_LARGE, middle))
        yield from ((self.most(longest), _SHORTEST), (self.most(longest), longest))
        yield from ((1, context) for context in _ONE_SEQUENCE if context < ends[0])
        yield from ((1, context) for context in ends)
        yield from ((batch, 1) for batch in _ONE_TOKEN)
        for end in self.limits.boundaries[:_MAX_BOUNDARIES]:
            yield from ((2, end), (2, end + 1), (1, end), (1, end + 1))

    def next_points(self) -> Iterator[Point]:
        """The further points that a derivation can afford."""
        new = dict.fromkeys(point for point in self.further_points() if self.is_worth(point))
        return islice(new, max(_MAX_PASSES - len(self.readings), 0))

    def further_points(self) -> Iterator[Point]:
        """Points that close the gaps between regions, and make regions where none holds yet."""
        yield from self._fewer_tokens()
        for batch, near, far in boundaries(self.regions, self.readings):
            if batch > 2:
                continue
            between = {
                end + step
                for end in self.limits.boundaries[:_MAX_BOUNDARIES]
                for step in range(-2, 2)
                if near < end + step < far
            }
            yield from ((batch, context) for context in between)
            if batch == 2 and not between:
                corners = {self.most(far), self.most(self.longest)}
                yield from product(corners, (near, far))
        for is_single in (False, True):
            for least, most in self._uncovered(is_single):
                yield from self._points_between(least, most, is_single)

    def _fewer_tokens(self) -> Iterator[Point]:
        """Corners with fewer tokens, where formulas hold for small batches and not for large ones.

        Values that depend on the data are assumed for large tensors, and computed for small ones.
        """
        contexts = (256, min(self.longest, 4096), self.longest)
        for context in contexts:
            known = [region for region in self.regions if region.contains(2, context)]
            if known and not any(r.contains(self.most(context), context) for r in known):
                most = _power_of_two(FEW_TOKENS // context)
                yield from product((2, max(2, min(_LARGE, most))), (_SHORTEST, context))

    def _uncovered(self, is_single: bool) -> Iterator[tuple[int, int]]:
        """Spans of contexts, of batch 1 or larger ones, that no region contains."""
        contexts = sorted(
            {x for batch, x in self.readings if (batch == 1) == is_single and x >= _SHORTEST}
        )
        batch = 1 if is_single else 2
        span: list[int] = []
        for context in [*contexts, 0]:
            if context and not any(r.contains(batch, context) for r in self.regions):
                span.append(context)
                continue
            if span:
                yield span[0], span[-1]
            span = []

    def _points_between(self, least: int, most: int, is_single: bool) -> Iterator[Point]:
        step = (most - least) // (MIN_CONTEXTS + 1)
        if step < 2:
            return
        inner = [least + place * step + place % 2 for place in range(1, MIN_CONTEXTS + 1)]
        if is_single:
            yield from ((1, context) for context in (least, *inner, most))
            return
        yield from zip((2, 3, 5, 16), inner, strict=True)
        yield from (
            (batch, context) for batch in (2, 3, self.most(most)) for context in (least, most)
        )

    def is_worth(self, point: Point) -> bool:
        """Whether a point can be traced soon, and was not yet."""
        batch, context = point
        return (
            point not in self.readings
            and point not in self.failed
            and 1 <= context <= self.longest
            and not self.is_done
            and batch >= 1
        )

    def add(self, point: Point, trace: Callable[[Workload], Trace]) -> None:
        """Trace a point; stop where the number of kernels grows with the workload."""
        try:
            found = trace(Workload(self.phase, *point))
        except NoDecode:
            self.is_done = True
            return
        except LlmsimError:
            self.failed.add(point)
            return
        self.readings[point] = Reading(found)
        counts = [len(reading.trace.recorded.kernels) for reading in self.readings.values()]
        self.is_done = max(counts) > _MAX_GROWTH * min(counts)

    def symbolic(self) -> SymbolicTrace:
        """The formulas that hold; without regions if there are none."""
        checked = {context for _, context in self.readings}
        near = {n + step for n in self.limits.integers for step in (-1, 0, 1)}
        return SymbolicTrace(regions=self.regions, unchecked=frozenset(near - checked))


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above a number; 1 for 0."""
    return 1 << max(number.bit_length() - 1, 0)


def derive(
    phases: Iterable[str], limits: Limits, trace: Callable[[Workload], Trace]
) -> dict[str, SymbolicTrace]:
    """Derive the symbolic traces of some phases of a model.

    A decode step needs the prefill before it, which is traced too: it shows whether the model
    loops over tokens.

    Args:
        phases: `prefill`, `decode` or both.
        limits: what the config says about contexts.
        trace: traces a workload.

    Returns:
        The symbolic trace of each phase that was traced; without regions if no formula holds.
    """
    known = [_Phase(phase, limits) for phase in PHASES if phase in {"prefill", *phases}]
    _trace_points(known, {phase.phase: _PROBES for phase in known}, trace)
    for number in range(_MAX_ROUNDS):
        points = {
            phase.phase: tuple(phase.next_points() if number else phase.first_points())
            for phase in known
        }
        if not _trace_points(known, points, trace):
            break
        for phase in known:
            phase.regions = fit_regions(phase.readings)
    return {phase.phase: phase.symbolic() for phase in known}


def first_points(phase: str, limits: Limits) -> frozenset[Point]:
    """The workloads that a derivation traces at least, as (batch, context)."""
    found = _Phase(phase, limits)
    return frozenset(point for point in found.first_points() if found.is_worth(point))


def _trace_points(
    phases: Sequence[_Phase],
    points: Mapping[str, Iterable[Point]],
    trace: Callable[[Workload], Trace],
) -> int:
    """Trace the points of each phase by context; return how many there were."""
    wanted = {
        phase.phase: {point for point in points[phase.phase] if phase.is_worth(point)}
        for phase in phases
    }
    traced = 0
    for point in sorted(set().union(*wanted.values()), key=lambda p: (p[0] > 16, p[1], p[0])):
        for phase in phases:
            if point in wanted[phase.phase] and phase.is_worth(point):
                phase.add(point, trace)
                traced += 1
        if phases[0].is_done:  # the prefill loops over tokens, also that before a decode step
            for phase in phases:
                phase.is_done = True
    return traced


def limits_of(model: "MetaModel") -> Limits:
    """What the config of a model, and the attributes of its modules, say about contexts."""
    from llmsim_magic.capture.meta.isolation import isolated, model_lock

    config: Any = model.module.config
    with isolated(), model_lock:
        numbers = set(_integers(config.to_dict()))
        for module in model.hooks.modules:
            numbers.update(_integers(module.attributes))
    declared = model.declared_context or _UNDECLARED
    longest = max(min(declared, model.longest_context or declared, _MOST), 1)
    between = {(name, n) for name, n in numbers if _SHORTEST < n < longest - _BEFORE_END}
    ends = sorted({n for name, n in between if _BOUNDARY.search(name) and "layer" not in name})
    return Limits(longest, tuple(ends), frozenset(number for _, number in between))


def _integers(values: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in nested dicts and lists, with the name that it has."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _integers(value, str(key))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _integers(value, name)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield name, values
