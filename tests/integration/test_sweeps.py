"""Sweeps: executors, cancellation, failing workloads and caching."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmsim_magic as llmsim
from llmsim_magic.capture import run as capture
from llmsim_magic.records.errors import Cancelled, CannotTrace, LlmsimError
from llmsim_magic.records.trace.workload import Workload
from tests.helpers import small_models

ASKED: dict[str, Any] = {"batch": [1, 3], "context": [2, 5]}


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    llmsim.forget()


def same(one: Any, other: Any) -> None:
    """Two sweeps with the same tables."""
    pd.testing.assert_frame_equal(one.totals, other.totals)
    pd.testing.assert_frame_equal(one.ops, other.ops)
    pd.testing.assert_frame_equal(one.shapes, other.shapes)


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Workload], BaseException | None]):
    """Have some workloads raise instead of being traced."""
    really = capture.run

    def run(weightless: Any, workload: Workload, **options: Any) -> Any:
        error = fails(workload)
        if error is not None:
            raise error
        return really(weightless, workload, **options)

    monkeypatch.setattr(capture, "run", run)


# executors


class Lossy(Executor):
    """Runs every other task; of the rest the worker is lost."""

    def __init__(self) -> None:
        self.asked = 0

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        self.asked += 1
        if self.asked % 2:
            future.set_result(work(*args, **kwargs))
        else:
            future.set_exception(BrokenProcessPool("a worker died"))
        return future


class Closed(Executor):
    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after shutdown")


def test_threads_trace_the_same() -> None:
    with ThreadPoolExecutor(3) as executor:
        same(
            llmsim.sweep(small_models.qwen3(), **ASKED, executor=executor),
            here(small_models.qwen3()),
        )


def here(model: Any) -> Any:
    llmsim.forget()
    return llmsim.sweep(model, **ASKED)


@pytest.mark.parametrize("executor", [Lossy(), Closed()], ids=["lost workers", "closed"])
def test_what_an_executor_loses_is_traced_here(executor: Executor) -> None:
    same(llmsim.sweep(small_models.qwen3(), **ASKED, executor=executor), here(small_models.qwen3()))


@pytest.mark.slow
def test_a_dask_cluster_traces_the_same() -> None:
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = llmsim.sweep(small_models.qwen3(), **ASKED, executor=client.get_executor())
    same(found, here(small_models.qwen3()))


# cut short


class AfterThree:
    """Cancels a sweep when its fourth workload begins."""

    said = ""

    def says(self, message: str) -> None:
        self.said = message

    def __call__(self) -> bool:
        return self.said.startswith("workload 4")


def test_a_cancelled_sweep_keeps_what_is_done() -> None:
    cancel = AfterThree()
    found = llmsim.sweep(small_models.qwen3(), **ASKED, cancelled=cancel, progress=cancel.says)
    assert len(found.traces) == 3
    assert "stopped early: 5 workloads were not traced" in found.notes


@pytest.mark.slow
def test_a_cancel_reaches_into_a_pass_and_the_next_one_is_right() -> None:
    whole = llmsim.sweep(small_models.qwen3(), **ASKED)
    for number in range(2, 60, 9):
        llmsim.forget()
        looks: list[int] = []

        def cancelled(number: int = number, looks: list[int] = looks) -> bool:
            looks.append(0)
            return len(looks) >= number

        with suppress(Cancelled):
            stopped = llmsim.sweep(small_models.qwen3(), **ASKED, cancelled=cancelled)
            assert len(stopped.traces) < len(whole.traces)
        again = llmsim.sweep(small_models.qwen3(), **ASKED)
        assert again.ops.equals(whole.ops)


def test_a_sweep_on_an_executor_can_be_cancelled() -> None:
    stop = threading.Event()

    class Never(Executor):
        def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Any:
            stop.set()
            return Future()

    with pytest.raises(LlmsimError, match="cancelled before any workload"):
        llmsim.sweep(small_models.qwen3(), **ASKED, executor=Never(), cancelled=stop.is_set)


def test_an_interrupted_sweep_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(
        monkeypatch,
        lambda workload: KeyboardInterrupt() if workload == Workload("prefill", 3, 5) else None,
    )
    found = llmsim.sweep(small_models.qwen3(), **ASKED)
    done = [(trace.workload.batch, trace.workload.context) for trace in found.traces]
    assert done
    assert max(done) < (3, 5)  # a prefill and its decode step run one after the other
    assert f"stopped early: {8 - len(done)} workloads were not traced" in found.notes


# what fails


def test_a_workload_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda w: CannotTrace("too wide") if w.batch == 3 else None)
    found = llmsim.sweep(small_models.qwen3(), **ASKED)
    failed = found.totals[found.totals["error"].notna()]
    assert failed["batch"].tolist() == [3] * 4
    assert set(failed["error"]) == {"too wide"}
    assert failed["flops"].isna().all()
    assert len(found.traces) == 4
    assert "too wide" in repr(found)


def test_a_sweep_of_which_nothing_can_be_traced_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda workload: CannotTrace("too wide"))
    with pytest.raises(CannotTrace, match="too wide"):
        llmsim.sweep(small_models.qwen3(), **ASKED)


def test_a_phase_that_does_not_exist_is_a_sentence() -> None:
    found = llmsim.sweep(small_models.bert(), **ASKED)
    assert set(found.totals["phase"]) == {"prefill"}
    assert "decode does not exist" in found.notes[0]


@pytest.mark.slow
def test_a_million_workloads_are_asked_about_first() -> None:
    many = {"batch": range(1, 1001), "context": range(1, 501)}
    with pytest.raises(LlmsimError, match=r"1,000,000 workloads would take about .* sure=True"):
        llmsim.sweep(small_models.qwen3(), **many)


def test_whoever_is_sure_is_not_asked() -> None:
    cancel = AfterThree()
    found = llmsim.sweep(
        small_models.qwen3(),
        batch=range(1, 1001),
        context=[2],
        sure=True,
        cancelled=cancel,
        progress=cancel.says,
    )
    assert len(found.traces) == 3


# what is remembered


def test_the_same_question_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = llmsim.trace(small_models.qwen3(), context=5).trace
    assert llmsim.trace(small_models.qwen3(), context=5).trace is first
    llmsim.forget()
    assert llmsim.trace(small_models.qwen3(), context=5).trace is not first


@pytest.mark.parametrize(
    "other",
    [{"context": 6}, {"batch": 2}, {"phase": "decode"}, {"dtype": "float16"}, {"attn": "eager"},
     {"base": True}, {"replay": False}],
    ids=str,
)  # fmt: skip
def test_what_changes_the_answer_is_another_question(other: dict[str, Any]) -> None:
    first = llmsim.trace(small_models.qwen3(), context=5).trace
    assert llmsim.trace(small_models.qwen3(), **{"context": 5} | other).trace is not first


def test_a_changed_config_is_another_question(tmp_path: Path) -> None:
    config = small_models.qwen3()
    first = llmsim.trace(config, context=5).trace
    config.num_hidden_layers = 1
    config.layer_types = config.layer_types[:1]
    assert len(llmsim.trace(config, context=5).trace.modules) < len(first.modules)
    config._attn_implementation = "eager"
    assert llmsim.trace(config, context=5).trace.model.attention == "eager"


def test_a_changed_folder_is_another_question(tmp_path: Path) -> None:
    small_models.qwen3().save_pretrained(tmp_path)
    first = llmsim.trace(str(tmp_path), context=5).trace
    small_models.llama().save_pretrained(tmp_path)
    assert llmsim.trace(str(tmp_path), context=5).trace.model.class_name != first.model.class_name


def test_a_sweep_runs_few_passes_beyond_its_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own traces show that kernels do not grow; a decode step reuses its prefill's cache."""
    passes: list[tuple[str, int, int]] = []
    primed: list[Workload] = []
    run, prime = capture.run, capture.prime_decode_cache

    def counted(weightless: Any, workload: Workload, **options: Any) -> Any:
        passes.append((workload.phase, workload.batch, workload.context))
        return run(weightless, workload, **options)

    def counted_priming(weightless: Any, workload: Workload, cache: Any, **options: Any) -> Any:
        if cache is None or not cache.fits(weightless, workload, **options):
            primed.append(workload)
        return prime(weightless, workload, cache, **options)

    monkeypatch.setattr(capture, "run", counted)
    monkeypatch.setattr(capture, "prime_decode_cache", counted_priming)
    formulas = llmsim.sweep(small_models.qwen3()).formulas
    assert all(each.is_complete for found in formulas.values() for each in found)
    assert len(passes) == len(set(passes)) <= 8 + 3 + 3 + 1
    assert len(primed) <= 1
