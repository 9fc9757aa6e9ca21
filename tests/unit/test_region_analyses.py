"""What is computed once for many evaluated traces is what each of them gives by itself."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.analyses.cost.operator_costs import costs, recorded_costs, totals
from llmsim_magic.analyses.formulas.region_analyses import FEW_NUMERIC, RegionAnalyses
from llmsim_magic.analyses.graph.dataflow import depends_on
from llmsim_magic.analyses.graph.layers import layers
from llmsim_magic.analyses.kernels.memoize import (
    NumericAnalysis,
    join_family,
    memoize_invariant,
    memoize_numeric,
)
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.records.trace.workload import Workload
from llmsim_magic.simulate.sweeps.trace_sequence import Evaluable, TraceSequence
from llmsim_magic.views.tables.operators import ops_table
from tests.helpers import small_models


def small_sweep(name: str, phase: str, vocabulary: int = 100) -> Any:
    """A sweep so large that formulas give most of its traces, and most of their costs."""
    config = small_models.CONFIGS[name]()
    config.max_position_embeddings = 400
    config.vocab_size = vocabulary
    contexts = [7, 9, 11, 13, 19, 27, 41, 77, 123, 222, 301, 380]
    return llmsim.sweep(config, batch=[1, 2, 3, 5, 6, 7, 9, 40], context=contexts, phase=phase)


CASES = [
    ("qwen3", "prefill"),
    *(
        pytest.param(name, phase, marks=pytest.mark.slow)
        for name in ("mixtral", "mistral", "gemma2", "t5")
        for phase in ("prefill", "decode")
    ),
]


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_shared_results_are_those_of_each_trace(name: str, phase: str) -> None:
    sweep = small_sweep(name, phase)
    evaluated = [entry for entry in sweep.traces.entries if isinstance(entry, Evaluable)]
    assert len(evaluated) > FEW_NUMERIC
    for trace, sums in zip(sweep.traces, sweep.totals.itertuples(), strict=True):
        alone = replace(trace)
        assert recorded_costs(trace) == recorded_costs(alone)
        assert costs(trace) == costs(alone)
        assert totals(trace) == totals(alone)
        assert depends_on(trace) == depends_on(alone)
        assert layers(trace) == layers(alone)
        assert trace.steps == alone.steps
        assert trace.paths == alone.paths
        assert (sums.flops, sums.bytes_read, sums.cache_bytes) == (
            totals(alone).flops,
            totals(alone).bytes_read,
            totals(alone).cache_bytes,
        )


def test_the_operators_of_a_sweep_are_those_of_each_workload() -> None:
    sweep = small_sweep("qwen3", "prefill", vocabulary=1_000)
    ops = sweep.ops
    for trace in sweep.traces[::9]:
        workload = trace.workload
        mine = ops[(ops["batch"] == workload.batch) & (ops["context"] == workload.context)]
        alone = ops_table(replace(trace)).reset_index()
        pd.testing.assert_frame_equal(mine.reset_index(drop=True)[list(alone)], alone)


class Counted:
    """A region whose traces are workloads alone, with the number of evaluations."""

    def __init__(self, *rectangles: tuple[int, int, int, int]) -> None:
        self.rectangles = rectangles
        self.analyses = RegionAnalyses(self)
        self._template = llmsim.trace(small_models.llama(), context=5).trace

    def evaluate(self, batch: int, context: int) -> Trace:
        trace = replace(self._template, workload=Workload("prefill", batch, context))
        join_family(trace, self.analyses)
        return trace


def test_a_result_that_differs_at_a_corner_is_not_shared() -> None:
    region = Counted((2, 90, 6, 800))

    @memoize_invariant
    def is_long(trace: Trace) -> bool:
        return trace.workload.batch * trace.workload.context > 70_000

    assert not any(is_long(region.evaluate(3, context)) for context in range(10, 30))
    assert is_long(region.evaluate(90, 800))


@pytest.mark.parametrize("rows", [500, 3_000, 30_000])
def test_a_table_read_by_row_is_the_lesser_of_two_formulas(rows: int) -> None:
    region, ran = Counted((2, 90, 6, 800)), list[Workload]()

    def read(trace: Trace) -> int:
        ran.append(trace.workload)
        tokens = trace.workload.batch * trace.workload.context
        return 4 * min(tokens, rows) + 7 * tokens

    numeric = memoize_numeric(NumericAnalysis(read, lambda n: (n,), lambda _, new: new[0] or 0))
    workloads = [(b, x) for b in range(2, 91, 3) for x in range(6, 801, 31)]
    for batch, context in workloads:
        tokens = batch * context
        expected = 4 * min(tokens, rows) + 7 * tokens
        assert numeric(region.evaluate(batch, context)) == expected
    assert len(ran) < len(workloads) / 2


def test_what_is_no_polynomial_is_computed_for_each_workload() -> None:
    region = Counted((2, 90, 6, 800))
    numeric = memoize_numeric(
        NumericAnalysis(
            lambda trace: -(-trace.workload.context // 64),
            lambda number: (number,),
            lambda _, new: new[0] or 0,
        )
    )
    for context in range(6, 801, 3):
        assert numeric(region.evaluate(5, context)) == -(-context // 64)


def test_a_trace_in_use_is_the_same_object_again() -> None:
    sweep = small_sweep("qwen3", "prefill")
    traces = sweep.traces
    assert isinstance(traces, TraceSequence)
    assert traces[-1] is traces[len(traces) - 1]
    assert [trace.workload for trace in traces] == list(traces.workloads)
    assert tuple(traces[3:5]) == (traces[3], traces[4])
    with pytest.raises(IndexError):
        traces[len(traces)]


def test_an_evaluated_trace_can_be_pickled_and_copied() -> None:
    sweep = small_sweep("qwen3", "prefill")
    index = next(i for i, e in enumerate(sweep.traces.entries) if isinstance(e, Evaluable))
    trace = sweep.traces[index]
    assert totals(trace).flops > 0
    assert pickle.loads(pickle.dumps(trace)) == trace
    assert copy.deepcopy(trace) == trace
    assert Trace.from_json(trace.to_json()) == trace
