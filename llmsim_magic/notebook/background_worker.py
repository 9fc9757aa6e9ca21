"""Run one cancellable job at a time in a thread."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Job(Generic[Result]):
    """A cancellable job.

    Attributes:
        key: equal for jobs with the same result.
        work: computes the result; polls `cancelled` of the job it is given.
    """

    key: Hashable
    work: "Callable[[Job[Result]], Result]"
    _stop: threading.Event = field(default_factory=threading.Event)

    def cancelled(self) -> bool:
        """Whether the job was cancelled."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Ask the job to stop."""
        self._stop.set()


class Worker(Generic[Result]):
    """Runs the newest job; an older running job is cancelled and its result is dropped.

    `on_end` is called with a job and its result or exception, in the thread of the job. It is
    not called for a cancelled job.
    """

    def __init__(self, on_end: Callable[[Job[Result], Result | Exception], None]) -> None:
        self._on_end = on_end
        self._lock = threading.Lock()
        self._job: Job[Result] | None = None

    @property
    def job(self) -> Job[Result] | None:
        """The running job; None if the worker is idle."""
        return self._job

    def take(self, job: Job[Result]) -> threading.Thread | None:
        """Replace the running job.

        Returns:
            A thread for the caller to start; None if a job with the same key is running.
        """
        with self._lock:
            if self._job is not None and self._job.key == job.key:
                return None
            self._replace(job)
        return threading.Thread(target=self._run, args=(job,), name="llmsim", daemon=True)

    def cancel(self) -> bool:
        """Cancel the running job; returns whether there was one."""
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
        except KeyboardInterrupt:  # a cancelled pass raises it
            with self._lock:
                if self._job is job:
                    self._job = None
            return
        with self._lock:
            if self._job is not job:
                return
            self._job = None
        self._on_end(job, result)
