"""Ctrl-C at any moment: nothing is left behind, and the next answer is right."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import matplotlib
import pandas as pd
import pytest
import torch
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager
from msgspec import structs
from torch import nn

import llmsim_magic as llmsim
from llmsim_magic.records import deferred_interrupt
from llmsim_magic.records.deferred_interrupt import DeferredInterrupt, defer_interrupt
from llmsim_magic.records.trace.trace import Trace
from llmsim_magic.simulate.report import Report
from llmsim_magic.simulate.request import Request
from llmsim_magic.simulate.views import views_of
from llmsim_magic.views.safe_files import MANIFEST
from tests.helpers import small_models
from tests.helpers.global_state import assert_state_unchanged

MODEL = small_models.build("qwen3")
GPT2, LLAMA = small_models.gpt2(), small_models.llama()


# what is interrupted: calls of ours alone, for a library that a test calls itself defers nothing


def _live(folder: Path) -> object:
    llmsim.forget()
    return llmsim.trace(MODEL, context=5, phase="decode").trace


def _built(folder: Path) -> object:
    llmsim.forget()
    return llmsim.trace(GPT2, context=5).trace


def _trained(folder: Path) -> object:
    llmsim.forget()
    return _without_ends(llmsim.trace(LLAMA, context=5, phase="train").trace)


def _trained_live(folder: Path) -> object:
    llmsim.forget()
    return _without_ends(llmsim.trace(MODEL, context=5, phase="train", checkpointing=True).trace)


def _without_ends(trace: Trace) -> Trace:
    """A step without the ends of its storages: what traces lines keeps some for a line longer."""
    kernels = tuple(structs.replace(kernel, frees=()) for kernel in trace.recorded.kernels)
    return replace(trace, recorded=replace(trace.recorded, kernels=kernels))


def _swept(folder: Path) -> object:
    llmsim.forget()
    return llmsim.sweep(LLAMA, batch=[1, 2], context=[3], cancelled=lambda: False).traces


def _analysed(folder: Path) -> object:
    report = _fresh(hardware="H100")
    tables = (report.ops, report.summary, report.edges, report.modules, report.times)
    return (*tables, report.symbolic.totals)


def _rendered(folder: Path) -> object:
    report = _fresh(views=("summary", "deps", "topological"))
    return report._repr_mimebundle_()["text/html"], repr(report)


def _drawn(folder: Path) -> object:
    return _fresh(hardware="H100").costing.roofline.svg


def _laid_out_elsewhere(folder: Path) -> object:
    """A graph large enough for a process of its own."""
    return llmsim.trace("gpt2", context=3).dependency_graph(level="kernel", layers="all").svg


def _exported(folder: Path) -> object:
    report = _fresh(views=("ops", "deps"))
    return *report.to_csv(folder / "tables"), report.to_html(folder / "page.html")


def _fresh(**options: Any) -> Report:
    views = options.pop("views", ("summary",))
    report = llmsim.trace(MODEL, context=5, **options)
    shown = views_of(Request(model=MODEL, views=views, deployment=report.deployment))
    return replace(report, views=shown)


QUICK = [_live, _built, _trained, _trained_live, _swept, _rendered, _exported]
WORK = [*QUICK, _analysed, _drawn, _laid_out_elsewhere]


# how


def _anywhere(code: CodeType) -> bool:
    return True


def _at_an_edge(code: CodeType) -> bool:
    """Where something is entered or left: the moments that an interrupt may spoil."""
    return code.co_name in ("__enter__", "__exit__") or code.co_filename == contextlib.__file__


class _Interrupt:
    """Sends this process an interrupt at the line of that number, of those in some code."""

    def __init__(self, among: Callable[[CodeType], bool], at: int = -1) -> None:
        self.lines = 0
        self._among = among
        self._at = at

    def __enter__(self) -> "_Interrupt":
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        return self._line if self._among(frame.f_code) else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self._line


def _world(folder: Path) -> dict[str, object]:
    """What a process has beside torch, and a careless tracer would leave behind."""
    return {
        "threads": {thread for thread in threading.enumerate() if thread.is_alive()},
        "temporary files": sorted(os.listdir(folder)),
        "open files": len(os.listdir("/proc/self/fd")),
        "handler": signal.getsignal(signal.SIGINT),
        "waits": deferred_interrupt._should_stop.get()(),
        "warnings": list(warnings.filters),
        "plots": dict(matplotlib.rcParams),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads of torch": torch.get_num_threads(),
    }


def _left_behind(before: dict[str, Any], after: dict[str, Any]) -> dict[str, object]:
    """What changed in a process; what an earlier test left there may end meanwhile."""
    changed = {name: value for name, value in after.items() if value != before[name]}
    if changed.get("threads", set()) <= before["threads"]:
        changed.pop("threads", None)
    if changed.get("open files", 0) <= before["open files"]:
        changed.pop("open files", None)
    return changed


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all temporary files go meanwhile."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _interrupted_at(
    work: Callable[[Path], object], points: int, seed: int, tmp_path: Path, temporary: Path
) -> int:
    """Interrupt some work at so many random lines; how often the interrupt came through."""
    right = _comparable(work(tmp_path / "right"))
    lines = {}
    for among in (_anywhere, _at_an_edge):
        with _Interrupt(among) as counted:
            result = work(tmp_path / "right")
        assert _comparable(result) == right
        lines[among] = counted.lines
    chance = random.Random(seed)
    came = 0
    for number in range(points):
        among = (_anywhere, _at_an_edge)[number % 2]
        interrupt = _Interrupt(among, chance.randint(1, lines[among]))
        before = _world(temporary)
        folder = tmp_path / str(number)
        with assert_state_unchanged(MODEL), suppress(KeyboardInterrupt), interrupt:
            came += 1
            work(folder)
            came -= 1
        _settle()
        assert not _left_behind(before, _world(temporary))
        assert {path.name for path in folder.rglob(".*")} <= {MANIFEST}
        assert _comparable(work(folder)) == right
    return came


def _comparable(result: object) -> object:
    """A result as values that compare equal; tables and files by what is in them.

    Never made while a line may be interrupted: `DataFrame.to_csv` changes the filters of warnings,
    and pandas does not defer the interrupt that comes before they are restored.
    """
    if isinstance(result, pd.DataFrame):
        return result.to_csv()
    if isinstance(result, Path):
        return result.read_text("utf-8")
    return [_comparable(part) for part in result] if isinstance(result, tuple) else result


def _settle() -> None:
    """A thread that was ended may need a moment to be gone."""
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tracing every line makes all slow: what is orderly stays so.

    What a shell starts in the background ignores interrupts, and so does all that it starts.
    """
    monkeypatch.setattr(deferred_interrupt, "PATIENCE_S", 60.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("work", QUICK, ids=lambda work: work.__name__.strip("_"))
def test_an_interrupt_leaves_nothing_and_the_next_answer_is_right(
    work: Callable[[Path], object], tmp_path: Path, temporary: Path
) -> None:
    assert _interrupted_at(work, 2, 1, tmp_path, temporary) > 0


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__.strip("_"))
def test_interrupts_at_two_hundred_random_points(
    work: Callable[[Path], object], tmp_path: Path, temporary: Path
) -> None:
    assert _interrupted_at(work, 25, 2, tmp_path, temporary) > 0


# orderly work


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_orderly_work_ends_where_it_asks_and_not_before() -> None:
    done = []

    def work() -> None:
        with DeferredInterrupt() as stopped:
            _interrupt()
            done.append("what was begun")
            if not stopped():
                done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["what was begun"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_that_an_interrupt_led_to_is_an_interrupt() -> None:
    @defer_interrupt
    def work() -> None:
        _interrupt()
        raise ValueError("half")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_second_interrupt_is_not_held_back() -> None:
    @defer_interrupt
    def work() -> None:
        _interrupt()
        _interrupt()
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_an_interrupt_is_not_lost_in_a_destructor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_interrupt, "PATIENCE_S", 0.1)
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Finalized:
        def __del__(self) -> None:
            _interrupt()
            _interrupt()

    @defer_interrupt
    def work() -> None:
        Finalized()
        for _ in range(100):
            time.sleep(0.05)
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert unraisable == []


def test_work_that_does_not_ask_is_interrupted_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deferred_interrupt, "PATIENCE_S", 0.1)

    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _interrupt()
            while True:
                pass

    module = Endless()
    with assert_state_unchanged(module), pytest.raises(KeyboardInterrupt):
        llmsim.trace(module, inputs=torch.ones(1))
    time.sleep(0.3)


def test_work_within_work_knows_of_all_that_would_stop_it() -> None:
    with DeferredInterrupt() as around, DeferredInterrupt(lambda: True) as within:
        assert not around()
        assert within()
        with DeferredInterrupt() as innermost:
            assert innermost()


def test_an_interrupt_is_the_main_threads_alone() -> None:
    held, found = threading.Event(), []

    def work() -> None:
        with DeferredInterrupt() as stopped:
            held.wait(5)
            found.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        _interrupt()
    held.set()
    thread.join()
    assert found == [False]


def test_a_handler_of_the_users_own_is_left_to_work() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with DeferredInterrupt() as stopped:
            _interrupt()
            assert not stopped()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


@pytest.mark.slow
def test_a_terminal_that_is_interrupted_ends_without_a_traceback(temporary: Path) -> None:
    command = [sys.executable, "-m", "llmsim_magic", "Qwen/Qwen3-0.6B", "--ops", "--multi-config"]
    chance = random.Random(3)
    environment = os.environ | {"TMPDIR": str(temporary)}
    for _ in range(8):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            time.sleep(chance.uniform(1.0, 6.0))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        at_its_end = -signal.SIGINT  # Python handles no signal any more
        assert process.returncode in (0, 130, at_its_end), said
        assert os.listdir(temporary) == []


@pytest.mark.slow
def test_a_cell_that_is_interrupted_leaves_a_kernel_that_answers() -> None:
    manager = KernelManager(transport="ipc")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        assert _outcome(client, "%load_ext llmsim_magic\n%llmsim gpt2;") == "ok"
        chance, outcomes = random.Random(4), set()
        for _ in range(8):
            cell = "llmsim.forget()\nreport = %llmsim meta-llama/Llama-3.1-405B --multi-config"
            client.execute(f"import llmsim_magic as llmsim\n{cell}", stop_on_error=False)
            time.sleep(chance.uniform(0.1, 1.5))
            manager.interrupt_kernel()
            outcomes.add(client.get_shell_msg(timeout=60)["content"].get("ename", "ok"))
            check = "assert len(llmsim.trace('gpt2', context=7).ops) == 164"
            assert _outcome(client, check) == "ok"
        assert outcomes <= {"ok", "KeyboardInterrupt"}
        assert "KeyboardInterrupt" in outcomes
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _outcome(client: BlockingKernelClient, cell: str) -> str:
    return str(client.execute_interactive(cell, timeout=120)["content"]["status"])
