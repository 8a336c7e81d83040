"""What runs in a worker of a cluster; imported there before anything else is."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from probex_jax.engine.compiled import keep_compiled


class Worker:
    """A process of a cluster that does the work of one map.

    Args:
      gpus: how many are its own.
    """

    def __init__(self, gpus: float):
        if not gpus:  # Ray leaves all of them in sight
            os.environ["JAX_PLATFORMS"] = "cpu"
        self._work: Future = Future()
        self._readers: Any = None
        self._turn = threading.Lock()

    def start(self, made: tuple[bytes, int]) -> int:
        """Makes the work; returns the number of the process."""
        from ray import cloudpickle

        make, readers = made
        try:
            keep_compiled()
            self._readers = ThreadPoolExecutor(readers)
            self._work.set_result(cloudpickle.loads(make)())
        except BaseException as error:
            self._work.set_exception(error)
            raise
        return os.getpid()

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """The results of items; a few calls at a time read, one computes."""
        work = self._work.result()
        read = [self._readers.submit(work.read, item) for item in items]
        data = [each.result() for each in read]
        with self._turn:
            return work.compute(items, data)

    def stop(self) -> None:
        """Closes the work; whoever asked for it has all results, or wants no more."""
        if self._work.done() and not self._work.exception():
            self._work.result().close()
