"""A long session leaks neither memory nor threads nor cache entries."""

import gc
import os
import statistics
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import llmsim_magic as llmsim
from benchmarks.session_stability import (
    MEASURED,
    WARM,
    State,
    _fresh_module,
    medians_by_kind,
    run_questions,
    state,
)
from llmsim_magic.capture.models.meta_model import MetaModel
from llmsim_magic.capture.prime_decode_cache import MAX_CACHED_BYTES
from llmsim_magic.records.errors import LlmsimError
from tests.helpers import small_models
from tests.helpers.global_state import assert_state_unchanged

QUICK = ("a live module", "a mistake", "a new config", "an unknown config")


@pytest.fixture(autouse=True)
def folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """For temporary files: other processes make theirs in the usual one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    llmsim.forget()


def _held(before: State, after: State) -> None:
    assert after.threads == before.threads
    assert after.descriptors <= before.descriptors
    assert after.temporary_files == before.temporary_files
    # what caches hold is bounded: an entry is some fifty objects at most
    assert after.objects < before.objects * 1.05 + 50 * max(after.cached - before.cached, 0)


@pytest.mark.slow
def test_questions_leave_no_thread_file_or_object() -> None:
    run_questions(range(24), QUICK)
    before = state()
    with assert_state_unchanged():
        run_questions(range(24, 72), QUICK)
    _held(before, state())


@pytest.mark.slow
def test_a_thousand_questions_leave_memory_and_time_flat() -> None:
    run_questions(range(WARM))
    before = state()
    with assert_state_unchanged():
        times = run_questions(range(WARM, WARM + MEASURED))
    after = state()
    _held(before, after)
    assert after.resident_bytes < before.resident_bytes * 1.05
    # What leaks slows every thousand questions; other users of the machine slow one of them.
    again = range(WARM + MEASURED, WARM + 2 * MEASURED)
    assert _slowdown(times) < 1.1 or _slowdown(run_questions(again)) < 1.1


def _slowdown(times: list[float]) -> float:
    """The time of a question in the second half of these ÷ that in the first."""
    first, second = medians_by_kind(times[: MEASURED // 2]), medians_by_kind(times[MEASURED // 2 :])
    return statistics.median(now / then for then, now in zip(first, second, strict=True))


def test_questions_that_become_slower_are_found() -> None:
    """Each thousand by a fifth between its halves, in noise of a fifth."""
    noise = [0.8 + 0.4 * (7 * number % 12 + number % 5) / 16 for number in range(MEASURED)]
    assert _slowdown(noise) < 1.1
    assert _slowdown([each * (1 + 0.4 * n / MEASURED) for n, each in enumerate(noise)]) > 1.1


def _own() -> nn.Module:
    return _fresh_module()


def _huggingface() -> nn.Module:
    class Mine(transformers.LlamaForCausalLM):
        """A subclass that exists only for this model."""

    return Mine(small_models.llama())


ASKED: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "inputs": (_own, lambda module: llmsim.trace(module, inputs=torch.ones(2, 8))),
    "mistake": (_own, lambda module: _refused(lambda: llmsim.trace(module, inputs=X))),
    "prefill": (_huggingface, lambda model: llmsim.trace(model, context=5)),
    "decode": (_huggingface, lambda model: llmsim.trace(model, context=5, phase="decode")),
    "sweep": (_huggingface, lambda model: llmsim.sweep(model, batch=[1], context=[2, 3])),
    "sizes": (
        _huggingface,
        lambda model: llmsim.trace(model, context=5, hardware="H100").sizing.table,
    ),
    "formulas": (_huggingface, lambda model: llmsim.trace(model, context=5).symbolic.ops),
    "graph": (_huggingface, lambda model: llmsim.trace(model, context=5).dependency_graph().svg),
}
X = torch.ones(2, 5)


def _refused(ask: Callable[[], Any]) -> None:
    with pytest.raises(LlmsimError):
        ask()


@pytest.mark.parametrize(("make", "ask"), ASKED.values(), ids=ASKED)
@pytest.mark.slow
def test_a_live_model_and_its_class_die_with_the_last_report(
    make: Callable[[], nn.Module], ask: Callable[[Any], Any]
) -> None:
    module = make()
    report = ask(module)
    dead = weakref.ref(module), weakref.ref(type(module))
    del module, report
    llmsim.forget()
    gc.collect()
    assert [each() for each in dead] == [None, None]


@pytest.mark.slow
def test_what_is_forgotten_is_gone() -> None:
    def weightless_models() -> int:
        gc.collect()
        return sum(type(each) is MetaModel for each in gc.get_objects())

    llmsim.forget()
    before = weightless_models()
    report = llmsim.trace(small_models.llama(), context=5, phase="decode")
    assert weightless_models() == before + 1
    llmsim.forget()
    assert weightless_models() == before
    assert report.symbolic.totals is not None  # which is asked of the model, built anew


def test_a_graph_too_large_for_this_process_leaves_none_behind() -> None:
    report = llmsim.trace("gpt2", context=5, replay=False)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert "<svg" in report.dependency_graph(depth=99, layers="all").svg
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads
    assert not os.listdir(tempfile.gettempdir())


def _host_bytes() -> int:
    """Bytes of all tensors on the host that anything still holds."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors if not each.is_meta]
    return sum({each._cdata: each.nbytes() for each in storages}.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        pytest.param(small_models.llama, {"batch": 2**20, "context": 5}, id="token ids"),
        pytest.param(small_models.mamba, {"batch": 2**12, "context": 5}, id="a state"),
    ],
)
def test_what_a_large_batch_needs_of_the_host_is_gone_after_the_answer(
    make: Callable[[], Any], sizes: dict[str, int]
) -> None:
    """The memory of an accelerator holds millions of requests of a small model."""
    llmsim.forget()
    before = _host_bytes()
    llmsim.trace(make(), **sizes)
    assert _host_bytes() <= before + MAX_CACHED_BYTES
    step = llmsim.trace(make(), phase="decode", **sizes).trace
    llmsim.forget()
    assert llmsim.trace(make(), phase="decode", **sizes).trace == step
