"""Time tables: parts sum to totals, bands contain times, missing values are NA."""

from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest

from llmsim_magic.analyses.cost.tokens_read import tokens_read
from llmsim_magic.analyses.time.kernel_sizes import kernel_shapes
from llmsim_magic.analyses.time.latency import latency
from llmsim_magic.analyses.time.pass_time import PassTime
from llmsim_magic.analyses.time.roofline import estimate
from llmsim_magic.catalog import accelerators
from llmsim_magic.catalog.calibration import calibration
from llmsim_magic.records.errors import LlmsimError
from llmsim_magic.records.hardware.kernel_shapes import Collective
from llmsim_magic.records.trace.parallel import Parallel
from llmsim_magic.records.trace.recorded import Record
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.models.recipes import model_recipe
from llmsim_magic.simulate.models.workloads import trace_workload
from llmsim_magic.simulate.request import Build
from llmsim_magic.views.tables.costs import costs_table
from llmsim_magic.views.tables.times import (
    latency_table,
    layer_times_table,
    times_table,
    type_times_table,
)
from tests.helpers import small_models

H100 = accelerators.find("H100-SXM5-80GB")
PREFILL = Workload("prefill", 2, 7)
DECODE = Workload("decode", 2, 7)


@cache
def spread(name: str, workload: Workload = DECODE, **parallel: int) -> Trace:
    build = Build(parallel=Parallel(**parallel))
    return trace_workload(model_recipe(small_models.CONFIGS[name](), build), workload, replay=True)


def sent(trace: Trace) -> list[tuple[str, str, Collective]]:
    """Every exchange: who asks for it, as what, and its size."""
    each = trace.expand_replays(kernel_shapes(trace, H100, "graph"))
    ops = trace.expand_replays([operator.op for operator in trace.recorded.operators])
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


# tables


@cache
def timed(name: str = "qwen3", workload: Workload = DECODE, regime: Any = "graph") -> PassTime:
    return latency(spread(name, workload), H100, regime=regime)


def empty() -> Trace:
    """A pass that runs nothing at all."""
    nothing = Record(storages=(), tensors=(), kernels=(), operators=(), calls=(), results=())
    return replace(spread("llama"), modules=(), parameters=(), recorded=nothing, replays=())


def tables(trace: Trace, time: PassTime) -> list[pd.DataFrame]:
    return [
        times_table(trace, [time]),
        layer_times_table(trace, time),
        type_times_table(trace, time),
    ]


@pytest.mark.parametrize("name", list(small_models.CONFIGS))
@pytest.mark.parametrize("regime", ["graph", "eager"])
def test_operators_layers_and_types_each_sum_to_the_pass(name: str, regime: Any) -> None:
    trace, time = spread(name, PREFILL), timed(name, PREFILL, regime)
    for table in tables(trace, time):
        share = "share" if "share" in table else "time_share"
        assert table["time_s"].sum() == pytest.approx(time.seconds)
        assert table[share].sum() == pytest.approx(1)
        for end in ("time_low_s", "time_high_s"):
            assert table[end].sum() == pytest.approx(times_table(trace, [time])[end].sum())
        spent = table.dropna(subset="time_s")
        assert (spent["time_low_s"] <= spent["time_s"]).all()
        assert (spent["time_s"] <= spent["time_high_s"]).all()


def test_where_no_kernel_runs_there_is_no_number() -> None:
    """Views, and what is made of nothing, as `arange` of one position."""
    trace, time = spread("llama"), timed("llama")
    table = times_table(trace, [time])
    idle = [order for order, each in enumerate(time.operators) if not each.kernels]
    assert idle
    missing = table.loc[idle].drop(columns=["path", "op", "runtime", "launch"])
    assert missing.isna().all(axis=None)
    assert table.drop(index=idle)["time_s"].notna().all()


def test_a_layer_or_type_is_bound_by_what_binds_most_of_its_time() -> None:
    trace, time = spread("llama"), timed("llama")
    each = times_table(trace, [time])
    for op, row in type_times_table(trace, time).dropna().iterrows():
        mine = each[each["op"] == op].groupby("binds")["time_s"].sum()
        assert mine[row["binds"]] == mine.max()


def test_work_in_a_table_is_that_of_the_kernels_timed() -> None:
    trace, time = spread("llama"), timed("llama")
    table = times_table(trace, [time]).dropna(subset="bytes")
    assert table["flops"].sum() == pytest.approx(sum(each.flops for each in time.operators))
    assert ((table["flops"] / table["bytes"]) - table["arithmetic_intensity"]).abs().max() < 1e-9
    assert table["of_bandwidth"].between(0, 1).all()
    assert table["of_peak"].between(0, 1).all()


def test_types_join_onto_costs() -> None:
    trace, time = spread("llama"), timed("llama")
    plain, joined = costs_table(trace), costs_table(trace, time)
    assert dict(joined["calls"]) == dict(plain["calls"])
    assert list(joined)[: len(plain.columns)] == list(plain)
    assert list(joined)[len(plain.columns) :] == ["bytes", *type_times_table(trace, time)]
    assert joined["time_s"].sum() == pytest.approx(time.seconds)


def test_a_pass_is_a_row_with_its_rate_and_what_binds() -> None:
    rows = [
        (spread("qwen3", workload), timed("qwen3", workload, regime))
        for workload in (PREFILL, DECODE)
        for regime in ("graph", "eager")
    ]
    table = latency_table(rows, [True] * len(rows))
    assert list(table["launch"]) == ["graph", "eager"] * 2
    for row, (_, time) in zip(table.itertuples(), rows, strict=True):
        tokens = 2 * 7 if row.phase == "prefill" else 2
        assert row.tokens_per_s == pytest.approx(tokens / time.seconds)
        assert row.time_low_s < row.time_s < row.time_high_s
        assert row.tokens_per_s_low < row.tokens_per_s < row.tokens_per_s_high
        name, share = row.binds.removesuffix(" %").split()
        assert float(share) == pytest.approx(100 * time.bound[name], abs=0.5)
    assert table["measured"].all()


def test_ranks_that_share_a_model_count_the_tokens_of_the_group() -> None:
    whole, rank = spread("llama"), spread("llama", tp=2)
    assert tokens_read(rank) == tokens_read(whole) == 2


@pytest.mark.parametrize(("name", "each"), [("vit", 17), ("whisper", 20), ("t5", 7), ("bert", 7)])
def test_tokens_are_what_was_really_read(name: str, each: int) -> None:
    """16 patches and a class token; 40 frames that the encoder halves; else what was asked for."""
    assert tokens_read(spread(name, PREFILL)) == 2 * each


def test_a_device_never_measured_says_so() -> None:
    stranger = replace(H100, name="Unheard-of 9000")
    [row] = latency_table(
        [(spread("llama"), latency(spread("llama"), stranger))], [None]
    ).itertuples()
    assert not row.measured
    assert pd.isna(row.fits)


def test_a_pass_that_runs_nothing_has_tables_without_rows() -> None:
    trace = empty()
    time = latency(trace, H100)
    assert all(table.empty for table in tables(trace, time))
    [row] = latency_table([(trace, time)], [None]).to_dict("records")
    assert pd.isna(row["tokens_per_s"])
    assert pd.isna(row["binds"])
    assert latency_table([], []).empty
