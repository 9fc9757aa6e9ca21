"""One piece of work at a time, in a thread: it tells how far it is, and can be cancelled."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Job(Generic[Result]):
    """Work that was asked for: `key` is equal for equal work."""

    key: Hashable
    work: "Callable[[Job[Result]], Result]"
    _stop: threading.Event = field(default_factory=threading.Event)

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def cancel(self) -> None:
        self._stop.set()


class Worker(Generic[Result]):
    """Runs the newest job. An older one that is still running is cancelled, its result dropped.

    `done` gets a job and its result, or the error that it ended with, in the job's own thread;
    not for a job that was cancelled.
    """

    def __init__(self, done: Callable[[Job[Result], Result | Exception], None]) -> None:
        self._done = done
        self._lock = threading.Lock()
        self._job: Job[Result] | None = None

    @property
    def job(self) -> Job[Result] | None:
        """The job that is running."""
        return self._job

    def take(self, job: Job[Result]) -> threading.Thread | None:
        """A thread that runs a job, to be started; None where the same is running already."""
        with self._lock:
            if self._job is not None and self._job.key == job.key:
                return None
            self._replace(job)
        return threading.Thread(target=self._run, args=(job,), name="llmsim", daemon=True)

    def cancel(self) -> bool:
        """Cancel what is running; whether there was something."""
        with self._lock:
            was_running = self._job is not None
            self._replace(None)
        return was_running

    def _replace(self, job: Job[Result] | None) -> None:
        if self._job is not None:
            self._job.cancel()
        self._job = job

    def _run(self, job: Job[Result]) -> None:
        result: Result | Exception
        try:
            result = job.work(job)
        except Exception as error:
            result = error
        except KeyboardInterrupt:  # how a pass ends that is cancelled
            with self._lock:
                if self._job is job:
                    self._job = None
            return
        with self._lock:
            if self._job is not job:
                return
            self._job = None
        self._done(job, result)
