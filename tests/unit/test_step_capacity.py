"""The largest micro-batch and the longest sequence of a training step, by traces."""

import pytest

from llmsim_magic.analyses.memory.capacity import Setup
from llmsim_magic.catalog import accelerators, runtimes
from llmsim_magic.records.trace.training import Training
from llmsim_magic.simulate.hardware import capacity_planner
from llmsim_magic.simulate.hardware.capacity_planner import CapacityPlanner
from llmsim_magic.simulate.request import Build
from tests.helpers.training_models import device_of, trained_decoder

SETUP = Setup(phase="train", batch=2, context=64)
MIB = 2**20
BATCHES = range(1, 13)
RUNTIME = runtimes.on("transformers", accelerators.find("L4"))


def planner_of(**options: object) -> CapacityPlanner:
    return CapacityPlanner(trained_decoder(), Build(training=Training(**options)))  # type: ignore[arg-type]


def needed(planner: CapacityPlanner, batch: int, context: int = 64) -> int:
    setup = Setup(phase="train", batch=batch, context=context)
    return planner.needed(setup, RUNTIME).required


@pytest.mark.slow
def test_the_largest_batch_is_that_of_trying_every_batch() -> None:
    planner = planner_of()
    sizes = {batch: needed(planner, batch) for batch in BATCHES}
    for limit in range(sizes[1] - MIB, sizes[12], 8 * MIB):
        device = device_of(limit)
        usable = RUNTIME.usable_bytes(device.memory_bytes or 0)
        expected = max((batch for batch in BATCHES if sizes[batch] <= usable), default=0)
        assert planner.largest_batch(SETUP, device, "transformers") == expected, limit


@pytest.mark.slow
def test_the_longest_context_fits_and_one_more_does_not() -> None:
    planner = planner_of()
    device = device_of(needed(planner, 2, 200))  # which rounding may need of a shorter one too
    usable = RUNTIME.usable_bytes(device.memory_bytes or 0)
    longest = planner.longest_context(SETUP, device, "transformers")
    assert longest is not None
    assert needed(planner, 2, longest) <= usable < needed(planner, 2, longest + 1)


def test_no_context_is_longer_than_the_positions_of_the_model() -> None:
    device = accelerators.find("H100")
    assert planner_of().longest_context(SETUP, device, "transformers") == 256


def test_a_batch_is_a_multiple_of_its_micro_batches() -> None:
    planner = planner_of(accumulate=2)
    device = device_of(needed(planner, 6) + MIB)
    largest = planner.largest_batch(SETUP, device, "transformers")
    assert largest is not None
    assert largest % 2 == 0
    assert largest >= 6


def test_what_does_not_fit_is_told_which_batch_and_context_do() -> None:
    planner = planner_of()
    device = device_of(needed(planner, 3) + MIB)
    found = planner.fit(Setup(phase="train", batch=8, context=64), device, "transformers")
    assert found is not None
    assert not found.fits
    assert found.binds in ("saved", "temporaries", "reserved")
    ways = dict(change for remedy in found.remedies for change in remedy.changes)
    assert ways.keys() == {"batch", "context"}
    assert all(remedy.total <= found.usable for remedy in found.remedies)


def test_what_the_allocator_reserves_beyond_the_peak_counts() -> None:
    """A device that holds what is allocated, and not what is reserved, does not hold a step."""
    planner = planner_of()
    memory = planner.needed(SETUP, RUNTIME)
    between = (memory.required + memory.allocated + memory.context) // 2
    found = planner.fit(SETUP, device_of(between), "transformers", remedies=False)
    assert found is not None
    assert not found.fits
    assert found.binds == "reserved"


def test_states_that_do_not_fit_leave_nothing_to_shorten() -> None:
    planner = planner_of()
    memory = planner.needed(SETUP, RUNTIME)
    found = planner.fit(SETUP, device_of(memory.context + memory.weights), "transformers")
    assert found is not None
    assert not found.remedies
    assert not found.fits_empty


def test_a_search_that_takes_too_many_kernels_stops_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity_planner, "_MAX_SEARCH_STEPS", 1)
    planner = planner_of()
    assert planner.largest_batch(SETUP, accelerators.find("H100"), "transformers")
    (note,) = planner.notes
    assert "larger ones take too long to trace" in note
