"""What is saved when a process is told to end, from whatever thread hears of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Saves what a running job has not saved yet, when the process is about to end.

    A signal's own handler would have to wait until a compiled program returns, which may take
    minutes; a thread that waits for the signal calls `save` at once.

    Example:
      >>> stop = Stop()
      >>> with stop.saves(lambda: print("saved")):
      ...     stop.save()
      saved
      >>> stop.save()
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._jobs: list[Callable[[], None]] = []

    @contextmanager
    def saves(self, job: Callable[[], None]) -> Iterator[None]:
        """While this lasts, `save` calls the job, which must be safe to call in another thread."""
        with self._lock:
            self._jobs.append(job)
        try:
            yield
        finally:
            with self._lock:
                self._jobs.remove(job)

    def save(self) -> None:
        """Calls the jobs; none begins or ends meanwhile."""
        with self._lock:
            for job in self._jobs:
                job()
