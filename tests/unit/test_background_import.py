"""Modules imported in a thread: silently, whole for whoever needs them, and out of the way."""

import gc
import importlib
import logging
import os
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmsim_magic.records.background_import import (
    BackgroundImport,
    import_step,
    is_imported,
    wait_for_imports,
)

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Interrupts end this process's work also where it was started without them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that can be imported, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(code: str, name: str = "") -> str:
        names.append(name or f"imported_in_background_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()
        return names[-1]

    yield write
    wait_for_imports()
    for name in names:
        sys.modules.pop(name, None)


def started(*names: str) -> BackgroundImport:
    """An import in the background that has begun its first step."""
    job = BackgroundImport([import_step(name) for name in names])
    job.start()
    return job


def test_a_step_that_fails_ends_the_work(module: Write) -> None:
    good, bad, never = module(""), module("raise OSError('no library')"), module("")
    started(good, bad, never).wait()
    assert good in sys.modules
    assert bad not in sys.modules
    assert never not in sys.modules


def test_a_module_that_prints_warns_logs_and_fails_shows_nothing(
    module: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    noisy = module(
        """
        import logging, sys, warnings
        print("printed")
        print("printed", file=sys.stderr)
        warnings.warn("warned", FutureWarning)
        logging.getLogger("background").error("logged")
        logging.getLogger("background.own").addHandler(logging.StreamHandler())
        logging.getLogger("background.own").error("logged")
        raise SystemExit("left")
        """
    )
    root = logging.StreamHandler()
    logging.getLogger().addHandler(root)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started(noisy).wait()
    finally:
        logging.getLogger().removeHandler(root)
    assert capfd.readouterr() == ("", "")
    assert not caught


def test_another_thread_is_heard_meanwhile(
    module: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    job = started(module("import time; time.sleep(0.2); print('muted')"))
    while not hasattr(sys.stdout, "_mute"):
        time.sleep(0.001)
    print("heard")
    with pytest.warns(UserWarning, match="also heard"):
        warnings.warn("also heard", stacklevel=1)
    job.wait()
    assert capfd.readouterr().out == "heard\n"


def test_the_process_is_left_as_it_was(module: Write) -> None:
    def state() -> tuple[object, ...]:
        handlers = [*logging.root.handlers, logging.lastResort]
        filters = [list(each.filters) for each in handlers if each is not None]
        return (
            sys.stdout, sys.stderr, [*sys.meta_path], [*warnings.filters], filters,
            gc.get_freeze_count(), gc.isenabled(), sys.getswitchinterval(),
        )  # fmt: skip

    before = state()
    started(module("import time; time.sleep(0.03)"), module(""), module("1 / 0")).wait()
    assert state() == before


def test_who_imports_the_same_module_gets_it_whole(module: Write) -> None:
    name = module("import time; time.sleep(0.3); value = 1")
    job = started(name)
    time.sleep(0.1)
    assert importlib.import_module(name).value == 1
    job.wait()


def test_a_module_whose_code_still_runs_is_not_imported(module: Write) -> None:
    name = module("import time; time.sleep(0.2)")
    job = started(name)
    while name not in sys.modules:
        time.sleep(0.001)
    assert not is_imported(name)
    job.wait()
    assert is_imported(name)
    assert not is_imported("no_such_module")


def test_it_waits_while_another_thread_computes_and_then_goes_on(module: Write) -> None:
    code = "import time\nend = time.thread_time() + 0.04\nwhile time.thread_time() < end: pass"
    names = [module(code) for _ in range(20)]
    job = started(*names)
    while names[0] not in sys.modules:
        time.sleep(0.001)
    end = time.thread_time() + 0.8
    while time.thread_time() < end:
        pass
    done = sum(name in sys.modules for name in names)
    assert done <= 10  # in equal shares, all 20
    limit = time.perf_counter() + 30
    while job.is_running and time.perf_counter() < limit:
        time.sleep(0.01)
    assert names[-1] in sys.modules


def test_no_step_begins_while_it_is_held(module: Write) -> None:
    names = [module("import time; time.sleep(0.1)") for _ in range(3)]
    job = started(*names)
    while names[0] not in sys.modules:
        time.sleep(0.001)
    job.hold(finishes_step=True)
    done = [is_imported(name) for name in names]
    assert done[0]
    assert not done[-1]
    time.sleep(0.3)
    assert [is_imported(name) for name in names] == done
    job.resume()
    job._thread.join(20)
    assert is_imported(names[-1])


def test_who_needs_what_is_held_gets_it(module: Write) -> None:
    names = [module("import time; time.sleep(0.05)") for _ in range(3)]
    job = started(*names)
    job.hold(finishes_step=False)
    job.wait()
    assert is_imported(names[-1])


def test_who_waits_for_it_is_not_given_way_to(module: Write) -> None:
    names = [module("") for _ in range(5)]
    job = started(*names)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            pass

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        job.wait()
    finally:
        stop.set()
        busy.join()
    assert set(names) <= set(sys.modules)


def test_an_interrupt_ends_the_wait_and_breaks_no_module(module: Write) -> None:
    name = module("import time; time.sleep(0.5); value = 1")
    job = started(name)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    began = time.perf_counter()
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert time.perf_counter() - began < 0.4
    job.wait()
    assert importlib.import_module(name).value == 1


def test_an_interrupt_ends_an_import_of_the_same_module_and_breaks_nothing(module: Write) -> None:
    name = module("import time; time.sleep(0.5); value = 1")
    job = started(name)
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(name)
    job.wait()
    assert importlib.import_module(name).value == 1


def test_a_forked_process_has_whole_modules_or_none(module: Write) -> None:
    first, second = module("import time; time.sleep(0.3); value = 1"), module("value = 2")
    job = started(first, second)
    while first not in sys.modules:
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        wait_for_imports()
        is_whole = importlib.import_module(first).value == 1
        is_imported = importlib.import_module(second).value == 2
        print("heard", file=sys.__stderr__)
        os._exit(0 if is_whole and is_imported and job not in sys.meta_path else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    job.wait()
    assert second in sys.modules
