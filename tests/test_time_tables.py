"""Times as tables: parts sum to wholes, bands hold them, and nothing is invented."""

from functools import cache
from typing import Any

import pytest

from llmsim_magic.analyses.latency import latency
from llmsim_magic.analyses.roofline import estimate
from llmsim_magic.analyses.sized import sizes
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.parallel import Parallel
from llmsim_magic.records.sizes import Collective
from llmsim_magic.records.trace import Trace
from llmsim_magic.records.workload import Workload
from llmsim_magic.simulate.loading import recipe_of, traced
from llmsim_magic.simulate.request import Build
from tests import small

H100 = accelerators.find("H100-SXM5-80GB")
PREFILL = Workload("prefill", 2, 7)
DECODE = Workload("decode", 2, 7)


@cache
def spread(name: str, workload: Workload = DECODE, **parallel: int) -> Trace:
    build = Build(parallel=Parallel(**parallel))
    return traced(recipe_of(small.CONFIGS[name](), build), workload, replay=True)


def sent(trace: Trace) -> list[tuple[str, str, Collective]]:
    """Every exchange: who asks for it, as what, and its size."""
    each = trace.of_each(sizes(trace, H100, "graph"))
    ops = trace.of_each([operator.op for operator in trace.recorded.operators])
    return [
        (path, op, size)
        for path, op, found in zip(trace.paths, ops, each, strict=True)
        for size in found
        if isinstance(size, Collective)
    ]


# what ranks hand each other


def test_every_projection_that_ends_a_split_is_summed_and_timed() -> None:
    trace = spread("llama", tp=2)
    summed = [path for path, op, _ in sent(trace) if op == "all_reduce"]
    ends = [path for path in trace.paths if path.endswith(("o_proj", "down_proj"))]
    assert len(ends) == 4
    inside = [path for path in summed if ".layers." in path]
    assert inside == [path.rpartition(".")[0] for path in ends]  # who calls it has asked
    assert {size.ranks for _, _, size in sent(trace)} == {2}


@pytest.mark.parametrize("regime", ["graph", "eager"])
def test_an_exchange_takes_as_long_as_its_collective(regime: Any) -> None:
    """An engine's graph sums by whichever kernel is quicker, its own or the library's."""
    trace = spread("llama", tp=2)
    time = latency(trace, H100, regime=regime)
    hidden = Collective("all_reduce", 2 * 1 * 64 * 4, 2)  # batch × token × hidden in float32
    ways = [hidden, Collective("all_reduce", hidden.message, 2, "engine")]
    known = [estimate(way, H100, calibration(), cold=True).seconds for way in ways]
    order = next(o for o, path in enumerate(trace.paths) if path.endswith("o_proj")) + 1
    taken = time.operators[order]
    if regime == "graph":
        assert taken.seconds == min(known)
        assert taken.binds in ("interconnect", "launch")
    else:
        assert taken.seconds >= known[0]
    assert taken.kind is not None
    assert taken.kind.startswith("collective all_reduce")


def test_what_a_stage_hands_on_is_sent_whole_from_one_device_to_the_next() -> None:
    """However many ranks share a stage, and once: where it is sent."""
    first, last = (spread("llama", tp=2, pp=2, stage=stage) for stage in range(2))
    handed = [size for _, op, size in sent(first) if op == "Send"]
    assert [size.bytes for size in handed] == [2 * 1 * 64 * 4]
    assert not [op for _, op, _ in sent(last) if op == "Receive"]
    assert "all_gather" not in [op for _, op, _ in sent(first)]  # the head is elsewhere


def test_a_device_without_a_link_is_one_line_that_names_it() -> None:
    alone = next(a for a in accelerators.entries().values() if not a.interconnect_bytes_per_s)
    with pytest.raises(LlmsimError, match="interconnect") as caught:
        latency(spread("llama", tp=2), alone)
    assert alone.name in str(caught.value)
    assert "\n" not in str(caught.value)
