"""Which tensors of a pass have known values, and what was assumed about the others."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llmsim_magic.capture.kernels import call_stack
from llmsim_magic.capture.kernels.rng import PrivateRng, generator_states
from llmsim_magic.records.trace.assumptions import assumption_note

MAX_KNOWN_ELEMENTS = 4_000_000  # larger tensors are not computed on the host
MAX_ASSUMPTIONS = 1_000  # made by one line in one module; no model type of transformers makes ten
MAX_READS = 10_000  # known values read by one line in one module, as by a loop over tokens


def _do_nothing() -> None:
    pass


class EndlessLoop(RuntimeError):
    """One line of a model reads values again and again."""


class CannotEvaluate(RuntimeError):
    """A call whose result cannot even be assumed without the values of its arguments."""


@dataclass(slots=True)
class Progress:
    """How far a pass came: the number of kernels that ran."""

    kernels: int = 0


class PassListener(Protocol):
    """Sees each function and kernel of an evaluated pass."""

    def call(
        self, func: Any, args: Any, kwargs: Any, run: Callable[[Any, Any, Any], Any]
    ) -> Any: ...

    def kernel(self, func: Any, args: Any, kwargs: Any, out: Any) -> None: ...

    def move_to_meta(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def hold(self, tensors: list[torch.Tensor]) -> None: ...


class PartialEvaluation:
    """The state of a partial evaluation: values that are known, and assumptions about others.

    Token ids, positions, masks, counters and everything computed from them alone are known, up to
    `MAX_KNOWN_ELEMENTS` elements; they are computed for real on the host. Weights, activations and
    everything computed from them are unknown and stay on `meta`.

    Args:
        before: The evaluation of the pass that computed this pass's cache, if any.

    Attributes:
        assumed: How many modules needed each assumption about values that depend on data.
        on_retry: Called when a torch function has failed and is about to run again.
        creates_on_meta: Whether tensors that are created on `meta`, such as zeros, stay there.
        changes: Counts in-place writes and marks: while it stays the same, so do the layouts and
            values of tensors, and what is known about them.
        listener: Runs each function that is called and sees each kernel that has run, if set.
        rng: Draws the random numbers of the pass on the host.
    """

    def __init__(self, before: "PartialEvaluation | None" = None) -> None:
        self.assumed: Counter[str] = Counter()
        self._assumed_in: set[tuple[str, int]] = set()
        self.on_retry: Callable[[], None] = _do_nothing
        self.creates_on_meta = False
        self.changes = 0
        self.listener: PassListener | None = None
        self.rng = PrivateRng()
        self._reads_silently = False
        self._accesses: Counter[Any] = Counter()
        # Storages are held, not only their addresses, so that no address is reused.
        self._overwritten: dict[int, torch.UntypedStorage] = {}
        if before is not None:
            self._overwritten |= before._overwritten
        self._checks: dict[int, torch.UntypedStorage] = {}
        self._any_of: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._none_true: dict[int, torch.UntypedStorage] = {}
        self._assumed_values: dict[int, Any] = {}  # lists and arrays, held like the storages

    def random_states(self) -> tuple[object, ...]:
        """The states of all random generators; equal unless the pass has drawn numbers."""
        return self.rng.draws, generator_states()

    @contextmanager
    def creating(self, *, on_meta: bool) -> Iterator[None]:
        """Let tensors that code in this context creates on `meta` stay there, or go to the host.

        Some composite operators create tensors on the device of one argument, and then compare it
        with the devices of the other arguments.
        """
        self.creates_on_meta, before = on_meta, self.creates_on_meta
        try:
            yield
        finally:
            self.creates_on_meta = before

    @contextmanager
    def reporting_to(self, listener: PassListener) -> Iterator[None]:
        """Report each function and kernel in this context to a listener.

        Args:
            listener: Gets each call with a function that runs it, and each kernel that has run;
                composite operators are decomposed first.
        """
        self.listener = listener
        try:
            yield
        finally:
            self.listener = None

    @contextmanager
    def reading_silently(self) -> Iterator[None]:
        """Let code in this context read values without limit, and assume them without a note.

        An optimizer reads some for each of its parameters, and only computes with them.
        """
        self._reads_silently, before = True, self._reads_silently
        try:
            yield
        finally:
            self._reads_silently = before

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the host and nothing unknown was written into it."""
        if tensor.is_meta:
            return False
        overwritten = self._overwritten
        return not overwritten or tensor.untyped_storage()._cdata not in overwritten

    def mark_overwritten(self, tensor: torch.Tensor) -> None:
        """Mark the values of a tensor as unknown, because unknown values were written into it."""
        self.changes += 1
        storage = tensor.untyped_storage()
        if not tensor.is_meta:
            self._overwritten[storage._cdata] = storage

    def overwritten(self) -> Collection[torch.UntypedStorage]:
        """The storages on the host into which unknown values were written; they are held."""
        return self._overwritten.values()

    def mark_check(self, condition: torch.Tensor) -> torch.Tensor:
        """Mark an unknown boolean as a validity check, which is assumed to pass if it is read.

        Args:
            condition: The result of `all` or a similar reduction.

        Returns:
            The same tensor.
        """
        self.changes += 1
        storage = condition.untyped_storage()
        self._checks[storage._cdata] = storage
        return condition

    def is_check(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was marked as a validity check."""
        return bool(self._checks) and tensor.untyped_storage()._cdata in self._checks

    def mark_any(self, condition: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Mark an unknown boolean as whether any of some values is true.

        Args:
            condition: The result of `any`.
            values: The unknown values.

        Returns:
            The condition.
        """
        storage = condition.untyped_storage()
        self._any_of[storage._cdata] = (storage, values.untyped_storage())
        return condition

    def assume_false(self, condition: torch.Tensor) -> None:
        """Note that a condition is assumed to be False: if it is `any`, no value is true."""
        if found := self._any_of.get(condition.untyped_storage()._cdata):
            self._none_true[found[1]._cdata] = found[1]

    def has_none_true(self, values: torch.Tensor) -> bool:
        """Whether none of these values is assumed to be true, because `any` of them was read."""
        return values.untyped_storage()._cdata in self._none_true

    def mark_assumed(self, values: Any) -> None:
        """Mark a list or array of assumed values: a tensor made of it has unknown values again."""
        self._assumed_values[id(values)] = values

    def is_assumed(self, values: Any) -> bool:
        """Whether a list or array was marked as assumed."""
        return id(values) in self._assumed_values

    def is_holdable(self, elements: int) -> bool:
        """Whether a tensor of so many elements is small enough to be computed on the host."""
        return elements <= MAX_KNOWN_ELEMENTS

    def assume(self, assumption: str) -> None:
        """Count an assumption about values that depend on data; the report lists it.

        Args:
            assumption: A sentence for the report.

        Raises:
            EndlessLoop: One line made the same kind of assumption more than `MAX_ASSUMPTIONS`
                times. Every answer is the same, so a loop that ends on data would never end.
        """
        if self._reads_silently:
            return
        self.note(assumption, depth=3)
        self._count_access(
            MAX_ASSUMPTIONS,
            "a value that depends on the data",
            "a loop that ends on such a value cannot be traced",
        )

    def note(self, sentence: str, depth: int = 2) -> None:
        """Count that the running module needs an assumption; once, however often it does.

        Args:
            sentence: A sentence for the report.
            depth: Number of innermost frames to skip on the way to the module.
        """
        module = call_stack.call_site(depth)[0]
        if (sentence, module) not in self._assumed_in:
            self._assumed_in.add((sentence, module))
            self.assumed[sentence] += 1

    def count_read(self) -> None:
        """Count that Python code reads a known value.

        Raises:
            EndlessLoop: One line did so more than `MAX_READS` times.
        """
        self._count_access(
            MAX_READS, "a known value", "the loop around it is endless or too long to trace"
        )

    def _count_access(self, limit: int, value: str, why: str) -> None:
        if self._reads_silently:
            return
        site = call_stack.call_site(3)
        self._accesses[limit, site] += 1
        if self._accesses[limit, site] > limit:
            line = call_stack.format_line(*site[1:])
            raise EndlessLoop(f"{line} read {value} more than {limit:,} times; {why}")

    def notes(self) -> list[str]:
        """Return each assumption with the number of modules that need it, for the report."""
        return [assumption_note(sentence, count) for sentence, count in self.assumed.items()]
