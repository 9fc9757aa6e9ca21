"""Import modules in a thread that gives way to the others, silently."""

import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from llmsim_magic.records.muted_thread import muted_thread

_SLICE_S = 0.02  # of CPU time between two looks at the other threads
_LOOK_S = 0.002
_PAUSE_S = 0.01
_QUIET_LOOKS = 3  # after which work that waits for others goes on
_BUSY = 0.1  # share of a CPU, of which other processes may take the most
_MOST_FORK_WAIT_S = 30.0

# Python modules whose forked child becomes another program at once.
_START_PROGRAMS = ("pty", "subprocess")

Step = Callable[[], object]
_started: "list[BackgroundImport]" = []


class BackgroundImport:
    """Runs steps, such as importing a module, one after the other in a daemon thread.

    Between modules the thread looks whether other threads compute, and waits until they no longer
    do. A thread that waits for a module which is being imported here does not compute, so that
    the import goes on. Modules live as long as the process; they are kept from the garbage
    collector meanwhile, whose searches through all of them would stop every thread.

    Python does not make every import wait for one of another thread: `import a.b` finds half of
    `a`, and a package that puts another object in its place is missed. Whoever may import
    what a step does has to `hold` the steps.

    Whatever a step raises ends the work silently: who needs the module imports it again.

    Args:
        steps: what to do, in order.
        quiet_s: how long the other threads have to be idle before the first step.
    """

    def __init__(self, steps: Sequence[Step], quiet_s: float = 0.0) -> None:
        self._steps = tuple(steps)
        self._quiet_s = quiet_s
        self._thread = threading.Thread(target=self._run, name="llmsim-imports", daemon=True)
        self._is_stopped = False
        self._may_begin = threading.Event()
        self._may_begin.set()
        self._is_urgent = False
        self._step_lock = threading.Lock()
        self._is_held = False  # by a thread that forks
        self._is_first = True
        self._next_look = 0.0
        self._keeps_modules = False

    def start(self) -> None:
        """Start the thread, which `wait_for_imports` then waits for."""
        _started.append(self)
        self._thread.start()

    def stop(self) -> None:
        """Do no further step; the current one ends."""
        self._is_stopped = True
        self._may_begin.set()

    def hold(self, *, finishes_step: bool) -> None:
        """Begin no further step until `resume`.

        Args:
            finishes_step: wait until the current step has ended; an interrupt ends the wait.
        """
        self._may_begin.clear()
        if finishes_step and self.is_running and not self._is_own_thread():
            self._is_urgent = True
            with self._step_lock:
                self._is_urgent = False

    def resume(self) -> None:
        """Go on with the steps once the other threads are idle."""
        self._may_begin.set()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the thread, which no longer gives way; an interrupt ends the wait."""
        if self._is_own_thread():
            return
        self._is_urgent = True
        self._may_begin.set()
        self._thread.join()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """As a finder of modules, of which it finds none: gives way before each is imported."""
        if self._is_own_thread() and time.thread_time() > self._next_look:
            self._keep_modules()
            self._give_way()
            self._next_look = time.thread_time() + _SLICE_S

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def _run(self) -> None:
        with suppress(BaseException), muted_thread():
            sys.meta_path.insert(0, self)
            self._keeps_modules = gc.get_freeze_count() == 0
            try:
                for step in self._steps:
                    self._take(step)
            finally:
                self._clean_up()

    def _take(self, step: Step) -> None:
        """Do a step when it may begin."""
        while True:
            self._wait_until_quiet()
            with self._step_lock:
                if self._is_stopped:
                    return
                if self._may_begin.is_set():
                    step()
                    return

    def _clean_up(self) -> None:
        with suppress(ValueError):
            sys.meta_path.remove(self)
        if self._keeps_modules:
            gc.unfreeze()

    def _keep_modules(self) -> None:
        """Leave what is there to no collection of garbage until the work is done."""
        if self._keeps_modules:
            gc.freeze()

    def _wait_until_quiet(self) -> None:
        """Wait until steps may begin, at first and after a hold until others are idle."""
        was_held = not self._may_begin.is_set()
        self._may_begin.wait()
        if was_held or self._is_first:
            quiet_since = time.perf_counter()
            while not self._is_urgent and time.perf_counter() - quiet_since < self._quiet_s:
                if _others_compute(_PAUSE_S):
                    quiet_since = time.perf_counter()
        self._is_first = False

    def _give_way(self) -> None:
        """Let other threads run, and wait until they have stopped computing for a while."""
        if self._is_urgent or not _others_compute(_LOOK_S):
            return
        quiet = 0
        while not self._is_urgent and quiet < _QUIET_LOOKS:
            quiet = 0 if _others_compute(_PAUSE_S) else quiet + 1

    def before_fork(self) -> None:
        """Let the current step end, and begin none: a child has no half of a module."""
        if self.is_running and not self._is_own_thread():
            was_urgent, self._is_urgent = self._is_urgent, True
            self._is_held = self._step_lock.acquire(timeout=_MOST_FORK_WAIT_S)
            self._is_urgent = was_urgent

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_held:
            self._is_held = False
            self._step_lock.release()

    def after_fork_in_child(self) -> None:
        """End the work, of which the child has no thread."""
        self._clean_up()


def import_step(name: str) -> Step:
    """The step that imports a module."""
    return lambda: importlib.import_module(name)


def _others_compute(seconds: float) -> bool:
    """Whether, for so long, other threads of the process use a part of a CPU."""
    started, used = time.perf_counter(), time.process_time() - time.thread_time()
    time.sleep(seconds)
    used = time.process_time() - time.thread_time() - used
    return used > _BUSY * (time.perf_counter() - started)


def is_imported(name: str) -> bool:
    """Whether a module is imported; False while a thread still runs its code."""
    module = sys.modules.get(name)
    is_running = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return module is not None and not is_running


def wait_for_imports() -> None:
    """Wait until no thread imports modules in the background; an interrupt ends the wait."""
    for each in _started:
        each.wait()


def _before_fork() -> None:
    if sys._getframe(1).f_globals.get("__name__") not in _START_PROGRAMS:
        for each in _started:
            each.before_fork()


def _after_fork_in_parent() -> None:
    for each in _started:
        each.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for each in _started:
        each.after_fork_in_child()
    _started.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
